"use strict";
(async () => {
  const form = document.getElementById("controls");
  if (!form || typeof DecompressionStream === "undefined") return;
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const inflate = async text => new Uint8Array(await new Response(
    new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
  const short = v => String(+v.toPrecision(3));
  const tables = {heat: bytes(form.dataset.heat), signed: bytes(form.dataset.signed)};
  const views = {map: {share: 100, edges: true}, cutout: {share: 30, edges: false}};  // what the controls say
  const {slider, output, mode, shared, edges, sure} = form.elements;
  const view = () => mode.value === "cutout" ? views.cutout : views.map;
  const on = box => Boolean(box && box.checked);

  const load = async node => {
    const d = node.dataset, n = d.w * d.h, all = await inflate(d.map);
    const cell = {node, n, w: +d.w, low: +d.low, high: +d.high, plus: +d.plus, column: d.column,
      values: d.values.split(" ").map(Number), canvas: node.querySelector("canvas")};
    d.planes.split(" ").forEach((name, k) => {
      const plane = all.subarray(k * n, (k + 1) * n);
      for (let i = 1; i < n; i++) plane[i] += plane[i - 1];
      cell[name] = plane;
    });
    cell.canvas.width = d.w;
    cell.canvas.height = d.h;
    cell.context = cell.canvas.getContext("2d");
    cell.image = cell.context.createImageData(+d.w, +d.h);
    return cell;
  };

  const span = (cell, cells) => {
    const all = on(shared) ? cells.filter(c => c.column === cell.column) : [cell];
    const of = (key, pick) => all.reduce((v, c) => pick(v, c[key]), cell[key]);
    return {low: of("low", Math.min), high: of("high", Math.max), plus: of("plus", Math.max)};
  };

  const code = v => Math.max(0, Math.min(255, Math.round(v)));

  const draw = (cell, cells) => {
    const kind = mode.value, limit = 255 * slider.value / 100, ends = span(cell, cells);
    const signs = kind === "signed" && cell.signed, table = signs ? tables.signed : tables.heat;
    const levels = signs
      ? Array.from({length: 256}, (_, s) => code(127.5 + (s - 127.5) * cell.plus / ends.plus))
      : cell.values.map(v => code(255 * (v - ends.low) / (ends.high - ends.low)));
    const alpha = levels.map(s => kind === "overlay" ? Math.round(240 * (s / 255) ** 0.75) : 255);
    const source = signs ? cell.signed : cell.rank, flags = cell.flags, out = cell.image.data;
    const test = on(sure) && cell.node.dataset.sure === "1", lines = on(edges) && flags ? 2 : 0;
    let kept = 0;
    for (let i = 0, o = 0; i < cell.n; i++, o += 4) {
      const stays = cell.rank[i] < limit && (!test || flags[i] & 1), s = source[i];
      kept += stays ? 1 : 0;
      if (lines && flags[i] & lines) {
        out[o] = out[o + 1] = out[o + 2] = out[o + 3] = 255;
      } else if (kind === "cutout") {
        out[o] = out[o + 1] = out[o + 2] = 24;
        out[o + 3] = stays ? 0 : 205;
      } else {
        const c = 3 * levels[s];
        out[o] = table[c];
        out[o + 1] = table[c + 1];
        out[o + 2] = table[c + 2];
        out[o + 3] = stays ? alpha[s] : 0;
      }
    }
    cell.context.putImageData(cell.image, 0, 0);
    cell.node.dataset.scale = signs ? "signed" : "heat";
    cell.node.querySelector(".lo").textContent = short(signs ? -ends.plus : ends.low);
    cell.node.querySelector(".hi").textContent = short(signs ? ends.plus : ends.high);
    cell.node.querySelector(".kept").textContent =
      (kept < cell.n ? `${short(100 * kept / cell.n)} % shown` : "") + (kind === "signed" && !signs ? " no sign" : "");
  };

  const read = (cell, event) => {
    const box = cell.canvas.getBoundingClientRect(), h = cell.n / cell.w;
    const x = Math.floor((event.clientX - box.left) / box.width * cell.w);
    const y = Math.floor((event.clientY - box.top) / box.height * h);
    const tip = cell.node.querySelector(".read"), i = y * cell.w + x, rank = cell.rank[i];
    tip.hidden = !(x >= 0 && y >= 0 && x < cell.w && y < h) || rank === 255;
    if (tip.hidden) return;
    const value = mode.value === "signed" && cell.signed
      ? (cell.signed[i] / 127.5 - 1) * cell.plus : cell.values[rank];
    tip.textContent = `${short(value)}, top ${Math.max(1, Math.ceil((rank + 1) / 2.55))} %`;
  };

  const cells = await Promise.all([...document.querySelectorAll("[data-map]")].map(load));
  const all = () => {
    output.value = `top ${slider.value} %`;
    slider.setAttribute("aria-valuetext", output.value);
    document.body.dataset.mode = mode.value;
    cells.forEach(cell => draw(cell, cells));
  };
  const restore = () => {
    slider.value = view().share;
    if (edges) edges.checked = view().edges;
  };
  form.addEventListener("input", event => {
    if (event.target.name === "mode") restore();
    view().share = slider.value;
    view().edges = on(edges);
    all();
  });
  form.addEventListener("submit", event => event.preventDefault());
  for (const cell of cells) {
    cell.canvas.addEventListener("pointermove", event => read(cell, event));
    cell.canvas.addEventListener("pointerleave", () => { cell.node.querySelector(".read").hidden = true; });
    cell.node.classList.add("live");
  }
  restore();
  form.hidden = false;
  all();
})();
