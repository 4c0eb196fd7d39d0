/* The sidebar stays where it was scrolled to, except where the page's own entry would be out of sight. */
"use strict";
addEventListener("load", () => {
  const bar = document.getElementById("pst-primary-sidebar");
  const entry = bar?.querySelector("a.current[href='#']");
  if (!entry) return;
  const [line, frame] = [entry, bar].map((element) => element.getBoundingClientRect());
  const head = 150; // pixels of the book's name and the search, which stay above
  if (line.top < frame.top + head || line.bottom > frame.bottom) bar.scrollTop += line.top - frame.top - frame.height / 2;
});
