import torch
from robustkit.kernels.balls import per_sample
def project_l1_box(adv, x, eps, low, high):
    d=(adv-x); e=torch.as_tensor(eps,dtype=d.dtype); lo=torch.zeros(len(d),dtype=d.dtype); hi=d.abs().flatten(1).amax(1)
    f=lambda lam:(x+d.sign()*(d.abs()-per_sample(lam,d)).clamp_min(0)).clamp(low,high)
    ok=(f(lo)-x).abs().flatten(1).sum(1)<=e
    for _ in range(60):
        mid=(lo+hi)/2; inside=(f(mid)-x).abs().flatten(1).sum(1)<=e
        lo=torch.where(inside,lo,mid); hi=torch.where(inside,mid,hi)
    return f(torch.where(ok,0,hi))
