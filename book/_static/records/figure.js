/* What the page "The records" shows as a figure: the choices, the points' words, the downloads. */
"use strict";
if (window.RECORDS) {
  const data = window.RECORDS;
  const { order, styles, svg, percent, inWords, warmupInWords, sample, draw } = window.RECORDS.drawing;
  const byId = (name) => document.getElementById(`records-${name}`);
  const criterionColumn = data.columns.findIndex(({ key }) => key === "criterion");
  const hidden = new Set(); // criteria whose box is not ticked, in every protocol
  const levels = ["dataset", "model", "protocol", "warmup"]; // what is chosen, from the outside in
  const choice = {};
  let group = null; // the chosen runs: one entry of data.groups
  const HINT = "Point at a mark, or go to the figure by the Tab key and on by the arrow keys, to read its numbers here.";
  let told = null; // key of the point that the arrow keys start from

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
        const options = offered.map((value) => new Option(value, value, false, value === choice[name]));
        byId(name).replaceChildren(...options);
      }
    }
    group = data.groups.find((runs) => levels.every((name) => runs[name] === choice[name]));
    offerCriteria();
    redraw();
  }

  /** A radio button or a check box with its words. */
  function input(properties, change, ...words) {
    const element = document.createElement("input");
    Object.assign(element, properties);
    element.addEventListener("change", () => change(element.checked));
    const label = document.createElement("label");
    label.append(element, ...words);
    return label;
  }

  function offerWarmups(offered) {
    const focused = byId("warmup").contains(document.activeElement);
    const labels = offered.map((updates) => {
      const radio = { type: "radio", name: "records-warmup", value: updates, checked: updates === choice.warmup };
      return input(radio, () => choose("warmup", updates), warmupInWords(updates));
    });
    byId("warmup").replaceChildren(...labels);
    if (focused) byId("warmup").querySelector(":checked").focus();
  }

  const present = () => order.filter((key) => group.points.some((point) => point.criterion === key));

  function offerCriteria() {
    const labels = present().map((key) => {
      const box = { type: "checkbox", value: key, checked: !hidden.has(key) };
      const swatch = svg("svg", { width: 30, height: 20, "aria-hidden": "true" }, ...sample(key, 15, 10));
      return input(box, (ticked) => tick([key], ticked), swatch, styles.get(key).label);
    });
    byId("criteria").replaceChildren(...labels);
  }

  /** Show or hide criteria. */
  function tick(keys, ticked) {
    for (const key of keys) {
      if (ticked) hidden.delete(key);
      else hidden.add(key);
    }
    for (const box of byId("criteria").querySelectorAll("input")) box.checked = !hidden.has(box.value);
    redraw();
  }

  const shownPoints = () => group.points.filter((point) => !hidden.has(point.criterion));

  const inOneLine = () =>
    `${choice.model} on ${choice.dataset}; ${choice.protocol}; warm-up: ${warmupInWords(choice.warmup)}`;

  /* --- the figure on the page, and its numbers in words */

  const keyOf = (point) => `${point.criterion} ${point.sparsity}`;

  /** A point that can be hovered, tapped and reached by keys. */
  function mark(point, parts, [x, y]) {
    const attributes = { tabindex: -1, role: "img", "aria-label": inWords(point), "data-point": keyOf(point), "data-y": y };
    const element = svg("g", attributes, ...parts);
    if (x !== null) element.dataset.x = x;
    element.addEventListener("focus", () => tell(element, point));
    return element;
  }

  /** The mark nearest to the pointer: they lie too close to each other to be hit. */
  function nearest(event) {
    const { left, top } = byId("plot").firstChild.getBoundingClientRect();
    let [found, least] = [null, 30];
    for (const element of byId("plot").querySelectorAll("[data-point]")) {
      const across = "x" in element.dataset ? event.clientX - left - element.dataset.x : 0;
      const distance = Math.hypot(across, event.clientY - top - element.dataset.y);
      if (distance < least) [found, least] = [element, distance];
    }
    return found;
  }

  function hover(event) {
    const element = nearest(event);
    if (element) tell(element, group.points.find((point) => keyOf(point) === element.dataset.point));
  }

  function tell(element, point) {
    for (const other of byId("plot").querySelectorAll("[tabindex]")) {
      other.setAttribute("tabindex", other === element ? 0 : -1);
      other.classList.toggle("records-told", other === element);
    }
    told = keyOf(point);
    byId("point").textContent = inWords(point);
  }

  /** Left and right: along a curve. Up and down: the next higher or lower mean at the same sparsity. */
  function move(event) {
    const here = event.target.closest("[data-point]");
    const points = shownPoints();
    const point = here && points.find((other) => keyOf(other) === here.dataset.point);
    const rank = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!point || !rank) return;
    event.preventDefault();
    const along = event.key === "ArrowLeft" || event.key === "ArrowRight";
    const across = (other) =>
      [other, point].some(({ criterion }) => criterion === "dense") || other.sparsity === point.sparsity;
    const curve = points.filter((other) => (along ? other.criterion === point.criterion : across(other)));
    curve.sort((a, b) => (along ? a.sparsity - b.sparsity : a.mean - b.mean));
    const next = curve[curve.indexOf(point) + rank];
    if (next) byId("plot").querySelector(`[data-point="${keyOf(next)}"]`).focus();
  }

  function redraw() {
    const focused = byId("plot").contains(document.activeElement);
    byId("plot").replaceChildren(draw(shownPoints(), Math.max(260, byId("plot").clientWidth - 2), mark));
    const marks = [...byId("plot").querySelectorAll("[data-point]")];
    const last = marks.find((element) => element.dataset.point === told);
    (last ?? marks[0])?.setAttribute("tabindex", 0);
    if (focused && last) last.focus();
    else byId("point").textContent = HINT;
    const points = shownPoints();
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
    const table = byId("numbers");
    table.replaceChildren();
    const head = table.createTHead().insertRow();
    for (const word of HEAD) {
      const cell = document.createElement("th");
      Object.assign(cell, { scope: "col", textContent: word });
      head.append(cell);
    }
    const body = table.createTBody();
    for (const point of ordered(points)) {
      const row = body.insertRow();
      const { mean, sd, n } = point;
      const cells = [point.sparsity, percent(mean), sd === null ? "" : percent(sd), n, point.seeds.join(", ")];
      const name = document.createElement("th");
      Object.assign(name, { scope: "row", textContent: styles.get(point.criterion).label });
      row.append(name);
      for (const content of cells) row.insertCell().textContent = content;
    }
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
    byId("plot").addEventListener("keydown", move);
    byId("plot").addEventListener("pointermove", hover);
    byId("plot").addEventListener("click", (event) => nearest(event)?.focus());
    byId("svg").addEventListener("click", () => download(fileName("svg"), "image/svg+xml", svgFile()));
    byId("shown").addEventListener("click", () => download(fileName("csv"), "text/csv", shownAsCsv()));
    let width = 0;
    new ResizeObserver(() => {
      if (byId("plot").clientWidth === width) return;
      width = byId("plot").clientWidth;
      redraw();
    }).observe(byId("plot"));
  }

  if (data.groups.length) {
    listen();
    Object.assign(choice, data.groups[0]); // the one with the most runs
    choose();
  } else {
    byId("nothing").hidden = false;
    byId("choices").hidden = true;
  }
}
