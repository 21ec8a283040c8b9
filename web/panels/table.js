// A table that scrolls.

import { column, html } from "../dom.js";

const NONE = "\u2013";

/** {element, show({columns, rows, note})} */
export function tableView(label) {
  const head = html("thead");
  const body = html("tbody");
  const remark = html("p", { class: "qarvd-remark", hidden: true });
  const element = html("div", {
    class: "qarvd-scroll qarvd-table",
    tabindex: 0,
    role: "region",
    "aria-label": label,
    "data-capture-wheel": "true",
  }, remark, html("table", {}, head, body));
  return {
    element,
    show({ columns, rows, note }) {
      remark.hidden = !note;
      remark.textContent = note ?? "";
      const writers = columns.map((_, c) => {
        const numbers = rows.map((row) => row[c]).filter((value) => typeof value === "number");
        return numbers.length ? column(numbers) : null;
      });
      const kind = (c) => (writers[c] ? "qarvd-number" : null);
      const written = (value, c) => (typeof value === "number" ? writers[c](value) : (value ?? NONE));
      const cell = (value, c) => (c
        ? html("td", { class: kind(c) }, written(value, c))
        : html("th", { class: kind(c), scope: "row" }, written(value, c)));
      const names = columns.map((name, c) => html("th", { scope: "col", class: kind(c) }, name));
      head.replaceChildren(html("tr", {}, ...names));
      body.replaceChildren(...rows.map((row) => html("tr", {}, ...row.map(cell))));
    },
  };
}
