/* The table of the page "The records": all runs, searched, sorted, fifty a page. */
"use strict";
if (window.RECORDS) {
  const data = window.RECORDS;
  const PAGE = 50;
  const byId = (name) => document.getElementById(`records-${name}`);
  const column = Object.fromEntries(data.columns.map(({ key }, i) => [key, i]));
  const labels = new Map(data.criteria.map(({ key, label }) => [key, label]));
  const sorted = { by: null, down: false };
  let first = 0; // place, among the rows found, of the first one on the page

  /** What a cell says; a failed run has no accuracy and says so in its place. */
  function content(row, key) {
    const value = row[column[key]];
    if (key === "criterion") return labels.get(value) ?? value;
    if (key === "test_accuracy") return value === null ? "failed" : (100 * value).toFixed(2);
    if (key === "when") return value === "init" ? "initialization" : "after training";
    if (key === "failure" || value !== null) return String(value ?? "");
    return { width: "its own", temperature: "its own", rounds: "its own" }[key] ?? "";
  }

  /** Criteria as everywhere in the book, the rest by size or by the alphabet. */
  const usual = ["dataset", "model", "criterion", "sparsity", "warmup", "seed"];
  const places = new Map(data.criteria.map(({ key }, place) => [key, place]));

  function asUsual(a, b) {
    const rank = ({ row }, key) => (key === "criterion" ? places.get(row[column[key]]) : row[column[key]]);
    for (const key of usual) {
      const [left, right] = [rank(a, key), rank(b, key)];
      if (left !== right) return left < right ? -1 : 1;
    }
    return 0;
  }

  /** A run with what a search looks in: the words of its cells, and column=value of each. */
  function searchable(row, index) {
    const words = [];
    const exact = new Set();
    for (const { key } of data.columns) {
      const text = content(row, key).toLowerCase();
      words.push(text);
      exact.add(`${key}=${text}`).add(`${key}=${row[column[key]]}`.toLowerCase());
    }
    words.push(row[column.criterion]);
    return { index, row, text: words.join(" "), exact };
  }

  const rows = data.rows.map(searchable).sort(asUsual);

  function fittingRows() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const drawn = byId("follow").checked ? data.shown ?? new Set() : null;
    const has = ({ text, exact }, word) => (/\w=./.test(word) ? exact.has(word) : text.includes(word));
    const fits = (run) => (!drawn || drawn.has(run.index)) && words.every((word) => has(run, word));
    const fitting = rows.filter(fits);
    if (sorted.by !== null) fitting.sort(compare);
    return fitting;
  }

  /** Numbers by size, words by the alphabet, what is absent last in both directions. */
  function compare(a, b) {
    const value = ({ row }) => (sorted.by === "criterion" ? content(row, "criterion") : row[column[sorted.by]]);
    const [left, right] = [value(a), value(b)];
    if (left === null || right === null) return (left === null) - (right === null);
    const way = typeof left === "number" ? left - right : String(left).localeCompare(String(right));
    return sorted.down ? -way : way;
  }

  function cell(row, key) {
    const element = document.createElement("td");
    const text = content(row, key);
    if (key === "id") {
      const link = document.createElement("a");
      const folder = [row[column.dataset], row[column.model]].map(encodeURIComponent).join("/");
      Object.assign(link, { href: `../_static/records-data/${folder}/${text}.json`, textContent: text });
      element.append(link);
      return element;
    }
    element.textContent = text;
    if (typeof row[column[key]] === "number") element.className = "records-number";
    if (key === "test_accuracy" && row[column[key]] === null) element.className = "records-failed";
    if (key === "failure" && text) element.className = "records-long";
    return element;
  }

  function render() {
    const fitting = fittingRows();
    first = Math.min(first, Math.max(0, PAGE * Math.floor((fitting.length - 1) / PAGE)));
    const page = fitting.slice(first, first + PAGE);
    byId("runs").tBodies[0].replaceChildren(
      ...page.map(({ row }) => {
        const line = document.createElement("tr");
        line.append(...data.columns.map(({ key }) => cell(row, key)));
        return line;
      }),
    );
    const failed = fitting.filter(({ row }) => row[column.failure] !== null).length;
    const range = page.length ? `; rows ${first + 1} to ${first + page.length} are below` : "";
    byId("count").textContent = `${fitting.length} of ${rows.length} runs, ${failed} of them failed${range}.`;
    byId("previous").disabled = first === 0;
    byId("next").disabled = first + PAGE >= fitting.length;
  }

  function turn(pages) {
    first = Math.max(0, first + pages * PAGE);
    render();
  }

  function sortBy(key) {
    sorted.down = sorted.by === key && !sorted.down;
    sorted.by = key;
    first = 0;
    for (const head of byId("runs").tHead.querySelectorAll("th")) {
      if (head.dataset.key === key) head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    render();
  }

  const head = byId("runs").tHead.insertRow();
  for (const { key, label } of data.columns) {
    const element = document.createElement("th");
    element.scope = "col";
    element.dataset.key = key;
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: label });
    button.addEventListener("click", () => sortBy(key));
    element.append(button);
    head.append(element);
  }
  byId("search").addEventListener("input", () => turn(-Infinity));
  byId("follow").addEventListener("change", () => turn(-Infinity));
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  document.addEventListener("records:shown", () => {
    if (byId("follow").checked) turn(-Infinity);
  });
  for (const sentence of data.unreadable) {
    const item = document.createElement("li");
    item.textContent = sentence;
    byId("unreadable").append(item);
  }
  byId("table").hidden = false;
  render();
}
