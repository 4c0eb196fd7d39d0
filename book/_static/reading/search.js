/* The search page's excerpts are of the text alone: no formulas as TeX, no code, no data of the page's scripts. */
"use strict";
if (typeof Search !== "undefined") {
  const OUT = "pre, .highlight, .cell_input, details.above-input, script, style, svg, .headerlink, .records, .enlarge, table";
  const MATH = ".math, mjx-container";
  const original = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(OUT).forEach((element) => element.remove());
    page.querySelectorAll(MATH).forEach((element) => element.replaceWith("…"));
    return original(page.documentElement.outerHTML, anchor);
  };
}
