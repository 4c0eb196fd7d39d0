/* The page "The masks": which network, criterion, warm-up and sparsity, and what the masks leave of each layer.
   window.MASKS is made by book/_ext/masks_page.py; a network's own masks are loaded when it is chosen. */
"use strict";
if (window.MASKS) {
  const data = window.MASKS;
  const { svg, sample, radios, slide, warmupInWords, address, explorer, table } = window.CHARTS;
  const { draw, share, layerName } = window.PROFILES;
  const byId = (name) => document.getElementById(`masks-${name}`);
  const looks = new Map(data.criteria.map((criterion) => [criterion.key, criterion]));
  const places = data.criteria.map(({ key }) => key);
  const folder = document.currentScript.src.replace(/records\/masks\.js.*/, "masks-data/");
  const HINT = "Tap or point at a mark, or go to the figure by the Tab key and on by the arrow keys, to read about a layer here.";
  const DASHES = "5 3"; // of the second criterion
  const first = { network: data.networks[0]?.key, criterion: "hutchinson_pruning", second: "", warmup: null, sparsity: 0.98 };
  const choice = { ...first };
  let network = null; // the masks of choice.network
  let drawn = []; // the masks in the figure: one or two

  byId("missing").hidden = true;
  byId("page").hidden = false;

  /* --- what is chosen */

  /** A criterion as it was scored: its key, and where it was scored in another way than the others, how. */
  const scoring = (mask) => mask.criterion + (mask.scored ? ` (${mask.scored})` : "");
  const label = (mask) => looks.get(mask.criterion).label + (mask.scored ? ` (${mask.scored})` : "");
  const distinct = (values) => [...new Set(values)];
  const ordered = (numbers) => distinct(numbers).sort((a, b) => a - b);

  /** Load a network's masks, a script of its own, and go on. */
  function load(key, then) {
    if (data.networks_by_key[key]) return then();
    const script = document.createElement("script");
    script.src = `${folder}${encodeURIComponent(key)}.js`;
    script.addEventListener("load", then);
    script.addEventListener("error", () => (byId("said").textContent = "The masks of this network could not be loaded."));
    document.head.append(script);
  }

  function choose(changes, written = true) {
    Object.assign(choice, changes);
    if (!data.networks.some(({ key }) => key === choice.network)) choice.network = first.network;
    load(choice.network, () => {
      network = data.networks_by_key[choice.network];
      settle();
      offer();
      redraw();
      if (written) toAddress();
    });
  }

  /** Let every choice be one that there is: the nearest. */
  function settle() {
    const { masks } = network;
    const keys = distinct(masks.map(scoring));
    if (!keys.includes(choice.criterion)) choice.criterion = keys.includes(first.criterion) ? first.criterion : keys[0];
    if (!keys.includes(choice.second)) choice.second = "";
    const warmups = ordered(masks.map((mask) => mask.warmup));
    if (!warmups.includes(choice.warmup)) choice.warmup = warmups.at(-1);
    const distance = (sparsity) => Math.abs(sparsity - choice.sparsity);
    choice.sparsity = sparsities().reduce((best, sparsity) => (distance(sparsity) < distance(best) ? sparsity : best));
  }

  const sparsities = () => ordered(network.masks.map((mask) => mask.sparsity));

  function offer() {
    const options = data.networks.map(({ key, title }) => new Option(title, key, false, key === choice.network));
    byId("network").replaceChildren(...options);
    const named = new Map(network.masks.map((mask) => [scoring(mask), mask]));
    const keys = [...named.keys()].sort((a, b) => places.indexOf(named.get(a).criterion) - places.indexOf(named.get(b).criterion));
    const criteria = (chosen) => keys.map((key) => new Option(label(named.get(key)), key, false, key === chosen));
    byId("criterion").replaceChildren(...criteria(choice.criterion));
    byId("second").replaceChildren(new Option("none", "", false, choice.second === ""), ...criteria(choice.second));
    const warmups = ordered(network.masks.map((mask) => mask.warmup));
    radios(byId("warmup"), "masks-warmup", warmups.map((each) => [each, warmupInWords(each)]), choice.warmup, (warmup) => choose({ warmup }));
    const steps = sparsities();
    slide(byId("sparsity"), steps.length, steps.indexOf(choice.sparsity), [steps[0], steps.at(-1)]);
    byId("sparsity").setAttribute("aria-valuetext", String(choice.sparsity));
    byId("sparsity-said").textContent = choice.sparsity;
  }

  const find = (criterion) =>
    network.masks.find(
      (mask) => scoring(mask) === criterion && mask.warmup === choice.warmup && mask.sparsity === choice.sparsity,
    );

  /* --- in words */

  const seeds = (mask) => `n = ${mask.seeds.length} ${mask.seeds.length === 1 ? "seed" : "seeds"}`;
  const part = (mask, layer) => mask.kept[layer] / (mask.seeds.length * network.sizes[layer]);
  const ofThem = (count, mask) => (mask.seeds.length === 1 ? "" : ` in ${count} of ${mask.seeds.length} seeds`);

  function layerInWords({ mask, layer }) {
    const emptied = mask.empty[layer] ? `; empty${ofThem(mask.empty[layer], mask)}` : "";
    const size = network.sizes[layer].toLocaleString("en");
    return (
      `${label(mask)}, layer ${layer + 1} of ${network.layers.length}, ${network.layers[layer]}: ` +
      `${share(part(mask, layer))} of ${size} weights kept, ${seeds(mask)}${emptied}`
    );
  }

  function maskInWords(mask) {
    const names = Object.entries(mask.empty).map(([layer, count]) => layerName(network.layers, Number(layer)) + ofThem(count, mask));
    const shown = names.length > 6 ? [...names.slice(0, 6), `${names.length - 6} more`] : names;
    return (
      `${label(mask)}, ${seeds(mask)}: ` +
      (names.length ? `${names.length === 1 ? "one layer is" : `${names.length} layers are`} empty, ${shown.join(", ")}. ` : "no layer is empty. ") +
      (mask.cut ? `The mask is cut${ofThem(mask.cut, mask)}: no path leads from input to output. ` : "The mask is not cut. ") +
      `Effective sparsity ${mask.effective.toFixed(4)}; ${(100 * mask.shared).toFixed(0)} % of the weights that it keeps are also in the mask of ${network.reference}.`
    );
  }

  function accuracyInWords(mask) {
    const fits = (run) => run.criterion === mask.criterion && run.sparsity === mask.sparsity && run.warmup === mask.warmup;
    const found = network.accuracies.filter(fits);
    const said = document.createElement("p");
    if (!found.length) {
      said.textContent = `${label(mask)}: no accuracy is recorded for this network at this sparsity and warm-up.`;
      return said;
    }
    said.append(`${label(mask)}, test accuracy after training: `);
    found.forEach((run, i) => {
      const spread = run.sd === null ? "" : ` ± ${(100 * run.sd).toFixed(2)}`;
      const link = document.createElement("a");
      link.textContent = `${(100 * run.mean).toFixed(2)}${spread} %`;
      const criteria = `dense,random,${mask.criterion}`;
      const view = { dataset: run.dataset, model: run.model, protocol: run.protocol, warmup: run.warmup, criteria };
      link.href = `records.html#${new URLSearchParams(view)}`;
      said.append(i ? "; " : "", link, ` (mean, n = ${run.n}; ${run.protocol})`);
    });
    said.append(".");
    return said;
  }

  /* --- the figure */

  const items = () => drawn.flatMap((mask) => mask.items);
  const figure = explorer({
    plot: byId("plot"), readout: byId("point"), hint: HINT, items, words: layerInWords,
    key: ({ mask, layer }) => `${scoring(mask)} ${layer}`,
    neighbour({ mask, layer }, arrow) {
      if (arrow === "ArrowLeft" || arrow === "ArrowRight") return mask.items[layer + (arrow === "ArrowRight" ? 1 : -1)];
      return drawn[1 - drawn.indexOf(mask)]?.items[layer];
    },
  });

  /** The least fraction that the chosen criteria keep of a layer at any sparsity: the axis stays while this changes. */
  function floor() {
    const chosen = [choice.criterion, choice.second];
    const masks = network.masks.filter((mask) => chosen.includes(scoring(mask)) && mask.warmup === choice.warmup);
    const parts = masks.flatMap((mask) => mask.kept.map((_, layer) => part(mask, layer))).filter((value) => value > 0);
    return Math.min(0.1, ...parts);
  }

  function redraw() {
    const asked = [choice.criterion, choice.second].filter(Boolean);
    drawn = distinct(asked).map(find).filter(Boolean);
    const absent = distinct(asked).filter((criterion) => !find(criterion));
    for (const mask of drawn) mask.items = network.layers.map((_, layer) => ({ mask, layer }));
    const curves = drawn.map((mask, i) => ({
      look: looks.get(mask.criterion), values: mask.items.map(({ layer }) => part(mask, layer)), items: mask.items,
      dashes: i ? DASHES : "",
    }));
    const said = drawn.map(maskInWords);
    const words = `Fraction kept of each layer of ${network.title} at sparsity ${choice.sparsity}. ${said.join(" ")}`;
    const settings = { density: 1 - choice.sparsity, floor: floor(), width: figure.width(), words, mark: figure.mark };
    byId("plot").hidden = !curves.length;
    if (curves.length) figure.show(draw({ curves, ...settings }));
    byId("legend").replaceChildren(...drawn.map(legend));
    const missing = absent.map((key) => `No mask of ${key.replace(/^\w+/, (name) => looks.get(name).label)} is recorded here.`);
    byId("said").textContent = [...said, ...missing].join(" ");
    byId("accuracy").replaceChildren(...drawn.map(accuracyInWords));
    byId("scored").textContent = `${network.title}; data: ${network.data}; ${network.scored}.`;
    numbers();
  }

  function legend(mask, i) {
    const look = looks.get(mask.criterion);
    const element = document.createElement("span");
    const swatch = svg("svg", { width: 30, height: 20, "aria-hidden": "true" }, ...sample(look, 15, 10), ...(i ? sample(look, 15, 10, DASHES) : []));
    element.append(swatch, ` ${label(mask)} (${seeds(mask)})`);
    if (mask.cut) {
      const sign = document.createElement("strong");
      sign.textContent = ` cut${ofThem(mask.cut, mask)}`;
      element.append(sign);
    }
    return element;
  }

  function numbers() {
    const head = ["layer", "weights", ...drawn.map((mask) => `${label(mask)}: kept`)];
    const rows = network.layers.map((name, layer) => [
      name, network.sizes[layer].toLocaleString("en"),
      ...drawn.map((mask) => share(part(mask, layer)) + (mask.empty[layer] ? `, empty${ofThem(mask.empty[layer], mask)}` : "")),
    ]);
    table(byId("numbers"), head, rows);
  }

  /* --- start */

  function toAddress() {
    address.write({ ...choice });
  }

  function fromAddress() {
    const { network, criterion, second, warmup, sparsity } = { ...first, ...address.read() };
    choose({ network, criterion, second, warmup: warmup === null ? null : Number(warmup), sparsity: Number(sparsity) }, false);
  }

  for (const sentence of data.unreadable) byId("unreadable").append(Object.assign(document.createElement("li"), { textContent: sentence }));
  if (data.networks.length) {
    for (const name of ["network", "criterion", "second"]) {
      byId(name).addEventListener("change", (event) => choose({ [name]: event.target.value }));
    }
    byId("sparsity").addEventListener("input", (event) => choose({ sparsity: sparsities()[event.target.value] }));
    figure.follow(() => network && redraw());
    address.watch(fromAddress);
    fromAddress();
  } else {
    byId("nothing").hidden = false;
    byId("choices").hidden = true;
  }
}
