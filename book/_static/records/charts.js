/* What the drawings and choices of "The records" and of "The masks" have in common. */
"use strict";
window.CHARTS = (() => {
  const INK = "currentColor"; // a page's text, in the light and in the dark
  const MARKER = 8; // pixels

  /* --- drawing */

  function svg(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  const text = (content, attributes) => svg("text", { fill: INK, "font-size": 12, ...attributes }, content);

  const percent = (fraction) => (100 * fraction).toFixed(2);

  /** About `count` round numbers that cover the range. */
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high + 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }

  /** A criterion's marker at a place. */
  const marker = ({ color, marker: shape }, x, y) =>
    svg("path", { d: shape, fill: color, transform: `translate(${x} ${y}) scale(${MARKER})` });

  /** A piece of line with its marker, for legends; `dashes` of the line, and no marker, where they are given. */
  function sample(look, x, y, dashes) {
    const line = { x1: x - 13, x2: x + 13, y1: y, y2: y, stroke: look.color, "stroke-width": 1.8 };
    if (dashes) return [svg("line", { ...line, "stroke-dasharray": dashes })];
    return [svg("line", line), marker(look, x, y)];
  }

  /** The ring of the focus. */
  const ring = (x, y) => svg("circle", { class: "records-ring", cx: x, cy: y, r: 8 });

  /* --- choosing */

  /** A radio button or a check box with its words. */
  function input(properties, change, ...words) {
    const element = document.createElement("input");
    Object.assign(element, properties);
    element.addEventListener("change", () => change(element.checked));
    const label = document.createElement("label");
    label.append(element, ...words);
    return label;
  }

  const warmupInWords = (updates) => (Number(updates) ? `with (${updates} updates)` : "without");

  /** Replace a group of radio buttons; the focus stays on what is chosen. offered: [value, words] each. */
  function radios(group, name, offered, chosen, choose) {
    const focused = group.contains(document.activeElement);
    const labels = offered.map(([value, words]) =>
      input({ type: "radio", name, value, checked: value === chosen }, () => choose(value), words),
    );
    group.replaceChildren(...labels);
    if (focused) group.querySelector(":checked")?.focus();
  }

  /** Give a slider its steps, and the words of its first and its last one beside it. */
  function slide(input, steps, place, words) {
    Object.assign(input, { min: 0, max: steps - 1, step: 1, value: place });
    [input.previousElementSibling.textContent, input.nextElementSibling.textContent] = words;
  }

  /* --- what is chosen stands in the page's address, behind #, so that a link leads to a view */

  const address = {
    read: () => (location.hash.includes("=") ? Object.fromEntries(new URLSearchParams(location.hash.slice(1))) : {}),

    /** Change some of its values; one that is empty goes. Without any, the address stays as it is. */
    write(values) {
      const all = { ...address.read(), ...values };
      const said = Object.entries(all).filter(([, value]) => value !== "" && value !== undefined && value !== null);
      const hash = new URLSearchParams(said).toString().replaceAll("%2C", ",");
      if (said.length || location.hash.includes("=")) history.replaceState(history.state, "", `#${hash}`);
    },

    /** Call when someone follows a link to another view of this page. */
    watch: (changed) => window.addEventListener("hashchange", () => location.hash.includes("=") && changed()),
  };

  /* --- marks that tell their numbers to the pointer, to a tap and to the keys */

  /** options: plot and readout, elements; hint, a sentence; items(), what is drawn; key(item), a text;
      words(item), what it says; neighbour(item, arrow), where an arrow key leads, if anywhere. */
  function explorer({ plot, readout, hint, items, key, words, neighbour }) {
    let told = null; // key of the item that the arrow keys start from

    function mark(item, parts, [x, y]) {
      const attributes = { tabindex: -1, role: "img", "aria-label": words(item), "data-point": key(item), "data-y": y };
      const element = svg("g", attributes, ...parts);
      if (x !== null) element.dataset.x = x;
      element.addEventListener("focus", () => tell(element));
      return element;
    }

    /** The mark nearest to the pointer: they lie too close to each other to be hit. */
    function nearest(event) {
      const { left, top } = plot.firstChild.getBoundingClientRect();
      let [found, least] = [null, 30];
      for (const element of plot.querySelectorAll("[data-point]")) {
        const across = "x" in element.dataset ? event.clientX - left - element.dataset.x : 0;
        const distance = Math.hypot(across, event.clientY - top - element.dataset.y);
        if (distance < least) [found, least] = [element, distance];
      }
      return found;
    }

    function tell(element) {
      for (const other of plot.querySelectorAll("[tabindex]")) {
        other.setAttribute("tabindex", other === element ? 0 : -1);
        other.classList.toggle("records-told", other === element);
      }
      told = element.dataset.point;
      readout.textContent = element.getAttribute("aria-label");
    }

    function move(event) {
      const here = event.target.closest("[data-point]");
      const item = here && items().find((other) => key(other) === here.dataset.point);
      if (!item || !event.key.startsWith("Arrow")) return;
      event.preventDefault();
      const next = neighbour(item, event.key);
      if (next) plot.querySelector(`[data-point="${key(next)}"]`).focus();
    }

    /** Put a drawing in the place of the last one; the focus stays at its mark. */
    function show(drawing) {
      const focused = plot.contains(document.activeElement);
      plot.replaceChildren(drawing);
      const marks = [...plot.querySelectorAll("[data-point]")];
      const last = marks.find((element) => element.dataset.point === told);
      (last ?? marks[0])?.setAttribute("tabindex", 0);
      if (focused && last) last.focus();
      else if (last && readout.textContent !== hint) tell(last);
      else readout.textContent = hint;
    }

    /** Draw again whenever the place for the drawing has another width. */
    function follow(redraw) {
      let width = 0;
      new ResizeObserver(() => {
        if (plot.clientWidth === width) return;
        width = plot.clientWidth;
        redraw();
      }).observe(plot);
    }

    plot.addEventListener("keydown", move);
    plot.addEventListener("pointermove", (event) => {
      const element = nearest(event);
      if (element) tell(element);
    });
    plot.addEventListener("click", (event) => nearest(event)?.focus());
    return { mark, show, follow, width: () => Math.max(260, plot.clientWidth - 2) };
  }

  /** Fill a table: a head of words, and rows whose first cell names them. */
  function table(element, head, rows) {
    const cell = (name, scope, content) => Object.assign(document.createElement(name), { scope, textContent: content });
    element.replaceChildren();
    element.createTHead().insertRow().append(...head.map((word) => cell("th", "col", word)));
    const body = element.createTBody();
    for (const [name, ...others] of rows) {
      const row = body.insertRow();
      row.append(cell("th", "row", name));
      for (const content of others) row.insertCell().textContent = content;
    }
  }

  return { INK, MARKER, svg, text, percent, ticks, marker, sample, ring, input, radios, slide, warmupInWords, address, explorer, table };
})();
