/* What the page "The records" shows as a figure: the choices, the points' words, the downloads. */
"use strict";
if (window.RECORDS) {
  const data = window.RECORDS;
  const { svg, percent, input, radios, warmupInWords, address, explorer, table } = window.CHARTS;
  const { order, styles, inWords, sample, draw } = data.drawing;
  const byId = (name) => document.getElementById(`records-${name}`);
  const criterionColumn = data.columns.findIndex(({ key }) => key === "criterion");
  const hidden = new Set(); // criteria whose box is not ticked, in every protocol
  const AT_FIRST = ["dense", "random", "magnitude", "snip", "fts", "hutchinson_pruning", "scaled_noise"]; // of many
  let ticked = false; // whether someone has chosen criteria
  const levels = ["dataset", "model", "protocol", "warmup"]; // what is chosen, from the outside in
  const choice = {};
  let group = null; // the chosen runs: one entry of data.groups
  const HINT = "Tap or point at a mark, or go to the figure by the Tab key and on by the arrow keys, to read its numbers here.";

  byId("missing").hidden = true;
  byId("figure").hidden = false;

  /* --- what is chosen */

  function values(level) {
    const outer = levels.slice(0, levels.indexOf(level));
    const fitting = data.groups.filter((runs) => outer.every((name) => runs[name] === choice[name]));
    return [...new Set(fitting.map((runs) => runs[level]))];
  }

  function choose(level, value) {
    if (level) choice[level] = value;
    for (const name of levels) {
      const offered = values(name);
      if (!offered.includes(choice[name])) choice[name] = offered[0];
      if (name === "warmup") {
        offerWarmups(offered);
      } else {
        const options = inShort(offered).map((words, i) => new Option(named(words), offered[i], false, offered[i] === choice[name]));
        byId(name).replaceChildren(...options);
      }
    }
    group = data.groups.find((runs) => levels.every((name) => runs[name] === choice[name]));
    if (!ticked) hide(present().length > 8 ? (key) => !AT_FIRST.includes(key) : () => false);
    offerCriteria();
    redraw();
    if (level) toAddress();
  }

  const named = (words) => data.proper[words] ?? words;

  /** What is chosen from, up to the semicolon, unless what is behind it tells two apart. */
  function inShort(offered) {
    const parts = offered.map((words) => words.split(";")[0]);
    return new Set(parts).size === parts.length ? parts : offered;
  }

  function offerWarmups(offered) {
    const words = [...offered].sort((a, b) => a - b).map((updates) => [updates, warmupInWords(updates)]);
    radios(byId("warmup"), "records-warmup", words, choice.warmup, (updates) => choose("warmup", updates));
  }

  const present = () => order.filter((key) => group.points.some((point) => point.criterion === key));

  function offerCriteria() {
    const labels = present().map((key) => {
      const box = { type: "checkbox", value: key, checked: !hidden.has(key) };
      const swatch = svg("svg", { width: 30, height: 20, "aria-hidden": "true" }, ...sample(key, 15, 10));
      return input(box, (shown) => tick([key], shown), swatch, styles.get(key).label);
    });
    byId("criteria").replaceChildren(...labels);
  }

  /** Hide the criteria that this is true of, and no others. */
  function hide(isHidden) {
    hidden.clear();
    for (const key of order.filter(isHidden)) hidden.add(key);
  }

  /** Show or hide criteria. */
  function tick(keys, shown) {
    ticked = true;
    for (const key of keys) {
      if (shown) hidden.delete(key);
      else hidden.add(key);
    }
    for (const box of byId("criteria").querySelectorAll("input")) box.checked = !hidden.has(box.value);
    redraw();
    toAddress();
  }

  const shownPoints = () => group.points.filter((point) => !hidden.has(point.criterion));

  const inOneLine = () =>
    `${named(choice.model)} on ${named(choice.dataset)}${group.data}; ${choice.protocol}; warm-up: ${warmupInWords(choice.warmup)}`;

  /* --- the figure on the page, and its numbers in words */

  /** Left and right: along a curve. Up and down: the next higher or lower mean at the same sparsity. */
  function neighbour(point, arrow) {
    const along = arrow === "ArrowLeft" || arrow === "ArrowRight";
    const across = (other) =>
      [other, point].some(({ criterion }) => criterion === "dense") || other.sparsity === point.sparsity;
    const curve = shownPoints().filter((other) => (along ? other.criterion === point.criterion : across(other)));
    curve.sort((a, b) => (along ? a.sparsity - b.sparsity : a.mean - b.mean));
    return curve[curve.indexOf(point) + (arrow === "ArrowRight" || arrow === "ArrowUp" ? 1 : -1)];
  }

  const key = (point) => `${point.criterion} ${point.sparsity}`;
  const parts = { plot: byId("plot"), readout: byId("point"), hint: HINT };
  const figure = explorer({ ...parts, items: shownPoints, key, words: inWords, neighbour });

  function redraw() {
    const points = shownPoints();
    figure.show(draw(points, figure.width(), figure.mark));
    const curves = new Set(points.map((point) => point.criterion)).size;
    const runs = points.reduce((sum, point) => sum + point.n, 0);
    byId("drawn").textContent =
      `${curves} ${curves === 1 ? "curve" : "curves"} of ${runs} runs.` +
      (group.points.some((point) => point.criterion === "dense") ? "" : " There is no dense network with these settings.") +
      (group.failed ? ` Failed runs, not drawn: ${group.failed}.` : "");
    byId("runs-drawn").textContent = `${inOneLine()}.`;
    numbers(points);
    data.shown = new Set(group.rows.filter((row) => !hidden.has(data.rows[row][criterionColumn])));
    document.dispatchEvent(new Event("records:shown"));
  }

  const HEAD = ["criterion", "sparsity", "mean (%)", "standard deviation", "n", "seeds"];

  const ordered = (points) =>
    [...points].sort((a, b) => order.indexOf(a.criterion) - order.indexOf(b.criterion) || a.sparsity - b.sparsity);

  function numbers(points) {
    const rows = ordered(points).map(({ criterion, sparsity, mean, sd, n, seeds }) =>
      [styles.get(criterion).label, sparsity, percent(mean), sd === null ? "" : percent(sd), n, seeds.join(", ")],
    );
    table(byId("numbers"), HEAD, rows);
  }

  /* --- downloads */

  function download(name, type, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const fileName = (suffix) => `${choice.model}-${choice.dataset}-warmup-${choice.warmup}.${suffix}`;

  function shownAsCsv() {
    const quoted = (value) => (/[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
    const rows = ordered(shownPoints()).map(({ criterion, sparsity, mean, sd, n, seeds }) =>
      [choice.dataset, choice.model, choice.protocol, choice.warmup, criterion, sparsity, mean, sd ?? "", n, seeds.join(" ")],
    );
    const head = "dataset,model,protocol,warmup,criterion,sparsity,mean,sd,n,seeds".split(",");
    return [head, ...rows].map((row) => `${row.map(quoted).join()}\n`).join("");
  }

  function svgFile() {
    const figure = draw(shownPoints(), 760, (point, parts) => svg("g", {}, ...parts), inOneLine());
    return new XMLSerializer().serializeToString(figure);
  }

  /* --- start */

  function listen() {
    for (const level of ["dataset", "model", "protocol"]) {
      byId(level).addEventListener("change", (event) => choose(level, event.target.value));
    }
    byId("all").addEventListener("click", () => tick(present(), true));
    byId("none").addEventListener("click", () => tick(present(), false));
    byId("svg").addEventListener("click", () => download(fileName("svg"), "image/svg+xml", svgFile()));
    byId("shown").addEventListener("click", () => download(fileName("csv"), "text/csv", shownAsCsv()));
    figure.follow(redraw);
    address.watch(fromAddress);
  }

  /* --- the address: what differs from the first view */

  function fromAddress() {
    const said = address.read();
    const { dataset, model, protocol, warmup } = data.groups[0]; // the one with the most runs, unless it says otherwise
    Object.assign(choice, { dataset, model, warmup, protocol: said.dataset ? undefined : protocol }, said);
    choice.warmup = Number(choice.warmup);
    const chosen = said.criteria?.split(",");
    ticked = Boolean(chosen);
    if (ticked) hide((key) => !chosen.includes(key) && !chosen.includes("all"));
    choose();
  }

  function toAddress() {
    const first = data.groups.find((runs) => runs.dataset === choice.dataset && runs.model === choice.model);
    const shown = present().filter((key) => !hidden.has(key));
    const chosen = {};
    for (const name of levels) chosen[name] = group === data.groups[0] ? "" : choice[name];
    if (choice.protocol === first.protocol) chosen.protocol = "";
    chosen.criteria = !ticked ? "" : shown.length === present().length ? "all" : shown.join() || "none";
    address.write(chosen);
  }

  if (data.groups.length) {
    listen();
    fromAddress();
  } else {
    byId("nothing").hidden = false;
    byId("choices").hidden = true;
  }
}
