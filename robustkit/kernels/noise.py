import hashlib, torch
def key_of(seed, sample_id, method, restart, chunk):
    return int.from_bytes(hashlib.blake2b(f"{seed}/{sample_id}/{method}/{restart}/{chunk}".encode(),digest_size=8).digest(),'big')>>1
def _k(keys, shape, dtype, device, f):
    out=torch.empty((len(keys),*shape),dtype=dtype)
    for r,k in zip(out,keys):
        f(r, torch.Generator().manual_seed(int(k)))
    return out.to(device)
def keyed_uniform(keys, shape, dtype, device):
    return _k(keys, shape, dtype, device, lambda r,g: r.uniform_(generator=g))
def keyed_normal(keys, shape, dtype, device):
    return _k(keys, shape, dtype, device, lambda r,g: r.normal_(generator=g))
