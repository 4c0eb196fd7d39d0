/* From ranking to lottery: noise of size β is added to the logarithms of the scores before the best are kept.
   window.SCALES holds histograms of these logarithms by layer, made by benchmarks/score_scales.py. */
"use strict";
window.LOTTERY = (() => {
  const PARTS = 8; // points of a bin

  /** The part of a bin from x to x + width that is kept: scores above the threshold t, after noise. Gumbel noise exceeds z
      with probability 1 − exp(−exp(−z)); the highest k of ln s + β·noise are k draws without replacement, with
      probabilities as s^(1/β). */
  function kept(x, width, t, beta) {
    if (beta === 0) return Math.max(0, Math.min(1, (x + width - t) / width));
    let sum = 0;
    for (let i = 0; i < PARTS; i++) sum -= Math.expm1(-Math.exp((x + (width * (i + 0.5)) / PARTS - t) / beta));
    return sum / PARTS;
  }

  /** The expected fraction kept of each layer, and the share of exact ranking's mask among what is kept.
      scores: {start, counts: bins by layer, zeros by layer}; width of a bin; beta: 0 ranks exactly, Infinity is blind. */
  function expected(scores, width, sparsity, beta) {
    const { start, counts, zeros } = scores;
    const sizes = counts.map((bins, layer) => bins.reduce((sum, n) => sum + n, zeros[layer]));
    const density = 1 - sparsity;
    if (beta === Infinity) return { values: sizes.map(() => density), shared: density };
    const wanted = density * sizes.reduce((sum, n) => sum + n, 0);
    const all = counts[0].map((_, bin) => counts.reduce((sum, bins) => sum + bins[bin], 0));
    const place = (bin) => start + width * bin;
    const total = (bins, t, noise) => bins.reduce((sum, n, bin) => (n ? sum + n * kept(place(bin), width, t, noise) : sum), 0);

    function threshold(noise) {
      let [low, high] = [start - 40 * (1 + noise), place(all.length) + 40 * (1 + noise)];
      for (let i = 0; i < 80; i++) {
        const middle = (low + high) / 2;
        if (total(all, middle, noise) > wanted) low = middle;
        else high = middle;
      }
      return (low + high) / 2;
    }

    const [t, exact] = [threshold(beta), threshold(0)];
    const both = all.reduce((sum, n, bin) => sum + n * kept(place(bin), width, exact, 0) * kept(place(bin), width, t, beta), 0);
    const values = counts.map((bins, layer) => total(bins, t, beta) / sizes[layer]);
    return { values, shared: beta === 0 ? 1 : both / wanted };
  }

  return { expected };
})();

if (window.SCALES && window.MASKS) {
  const { svg, sample, radios, slide, warmupInWords, address, explorer } = window.CHARTS;
  const { draw, share, layerName } = window.PROFILES;
  const scales = window.SCALES;
  const byId = (name) => document.getElementById(`lottery-${name}`);
  const looks = new Map(window.MASKS.criteria.map((criterion) => [criterion.key, criterion]));
  const labelOf = (key) => (key === "hutchinson_pruning" ? "|HP|" : looks.get(key).label); // its scores have a sign, these sizes none
  const layers = Object.keys(scales.layers);
  const SPARSITIES = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998];
  const BLIND = 100; // the slider's end
  const HINT = "Tap or point at a mark, or go to the figure by the Tab key and on by the arrow keys, to read about a layer here.";
  const choice = { criterion: "hutchinson_pruning", warmup: "98", sparsity: 0.98, noise: 0 };
  let curves = [];

  /** The slider's place as β: 0 at its beginning, 1 in the middle, without bound at its end. */
  const beta = (noise) => (noise >= BLIND ? Infinity : noise <= 0 ? 0 : Math.tan((Math.PI / 2) * (noise / BLIND)));
  const inWords = (size) => (size === 0 ? "0, exact ranking" : size === Infinity ? "∞, uniform" : size.toPrecision(2));

  const figure = explorer({
    plot: byId("plot"), readout: byId("point"), hint: HINT,
    items: () => curves.flatMap((curve) => curve.items),
    key: ({ curve, layer }) => `${curve.name} ${layer}`,
    words: ({ curve, layer }) =>
      `${curve.name}, layer ${layer + 1} of ${layers.length}, ${layers[layer]}: ${share(curve.values[layer])} of ` +
      `${scales.layers[layers[layer]].toLocaleString("en")} weights expected to be kept`,
    neighbour: ({ curve, layer }, arrow) =>
      arrow === "ArrowLeft" || arrow === "ArrowRight"
        ? curve.items[layer + (arrow === "ArrowRight" ? 1 : -1)]
        : curves[1 - curves.indexOf(curve)]?.items[layer],
  });

  function redraw() {
    const scores = scales.warmups[choice.warmup][choice.criterion];
    const label = labelOf(choice.criterion);
    const size = beta(choice.noise);
    const { values, shared } = window.LOTTERY.expected(scores, scales.width, choice.sparsity, size);
    const exact = window.LOTTERY.expected(scores, scales.width, choice.sparsity, 0).values;
    const look = looks.get(choice.criterion);
    curves = [{ name: `${label}, β = ${inWords(size)}`, look, values, dashes: "" }];
    if (size > 0) curves.push({ name: `${label}, exact ranking`, look: { ...looks.get("random"), color: "currentColor" }, values: exact, dashes: "5 3" });
    for (const curve of curves) curve.items = layers.map((_, layer) => ({ curve, layer }));
    const least = values.indexOf(Math.min(...values));
    const most = values.indexOf(Math.max(...values));
    const said =
      `Noise β = ${inWords(size)}: from ${share(values[least])} of ${layerName(layers, least)} to ` +
      `${share(values[most])} of ${layerName(layers, most)} are expected to be kept; ` +
      `exact ranking keeps ${(100 * shared).toFixed(0)} % of these weights, too.`;
    byId("said").textContent = said;
    byId("noise").setAttribute("aria-valuetext", `β = ${inWords(size)}`);
    byId("noise-said").textContent = inWords(size);
    byId("sparsity").setAttribute("aria-valuetext", String(choice.sparsity));
    byId("sparsity-said").textContent = choice.sparsity;
    const words = `Expected fraction kept of each layer by ${label} at sparsity ${choice.sparsity}. ${said}`;
    const floor = Math.min(0.1, 1e-5);
    const width = figure.width();
    figure.show(draw({ curves, density: 1 - choice.sparsity, floor, width, words, mark: figure.mark }));
    byId("legend").replaceChildren(
      ...curves.map((curve) => {
        const element = document.createElement("span");
        const swatch = svg("svg", { width: 30, height: 20, "aria-hidden": "true" }, ...sample(curve.look, 15, 10));
        element.append(swatch, ` ${curve.name}`);
        return element;
      }),
    );
  }

  function offer() {
    const criteria = Object.keys(scales.warmups[choice.warmup]).map((key) => [key, labelOf(key)]);
    radios(byId("criterion"), "lottery-criterion", criteria, choice.criterion, (criterion) => change({ criterion }));
    const warmups = Object.keys(scales.warmups).map((count) => [count, warmupInWords(count)]);
    radios(byId("warmup"), "lottery-warmup", warmups, choice.warmup, (warmup) => change({ warmup }));
    const ends = [SPARSITIES[0], SPARSITIES.at(-1)];
    slide(byId("sparsity"), SPARSITIES.length, SPARSITIES.indexOf(choice.sparsity), ends);
    slide(byId("noise"), BLIND + 1, choice.noise, ["0", "∞"]);
  }

  function change(changes) {
    Object.assign(choice, changes);
    redraw();
    address.write({ lottery: Object.values(choice).join() });
  }

  function fromAddress() {
    const [criterion, warmup, sparsity, noise] = address.read().lottery?.split(",") ?? [];
    if (scales.warmups[warmup]?.[criterion]) Object.assign(choice, { criterion, warmup });
    if (SPARSITIES.includes(Number(sparsity))) choice.sparsity = Number(sparsity);
    if (Number(noise) >= 0 && Number(noise) <= BLIND) choice.noise = Number(noise);
    offer();
    redraw();
  }

  byId("page").hidden = false;
  byId("sparsity").addEventListener("input", (event) => change({ sparsity: SPARSITIES[event.target.value] }));
  byId("noise").addEventListener("input", (event) => change({ noise: Number(event.target.value) }));
  figure.follow(redraw);
  address.watch(fromAddress);
  fromAddress();
}
