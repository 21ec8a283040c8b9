// Outlier heat map: rows are layer types, columns depth, and the shade is the share of outlier channels.

import { count, counted, html, number, percent, swallow } from "../dom.js";

const NEAREST = 12; // percent: the shade of the least share above 0
const WIDEST = 30; // columns of a map of layers outside the blocks
const APART = 5; // pixels above the row of those
const OUTSIDE = "outside the blocks";

const coarse = (value) => number(value, 2);
const share = (layer) => (layer.channels ? layer.count / layer.channels : 0);

/** {rows: [{name, cells: [layers or null]}], columns}: layers of one type and depth share a cell. */
function arrange(layers) {
  const inside = layers.filter((layer) => layer.depth !== null);
  const outside = layers.filter((layer) => layer.depth === null);
  const least = inside.length ? 1 : Math.min(outside.length, WIDEST);
  const columns = Math.max(least, ...inside.map((layer) => layer.depth + 1));
  const rows = new Map();
  for (const layer of inside) {
    if (!rows.has(layer.type)) rows.set(layer.type, Array(columns).fill(null));
    const cells = rows.get(layer.type);
    cells[layer.depth] = [...(cells[layer.depth] ?? []), layer];
  }
  const found = Array.from(rows, ([name, cells]) => ({ name, cells }));
  for (let from = 0; from < outside.length; from += columns) {
    const cells = Array.from({ length: columns }, (_, i) => (outside[from + i] ? [outside[from + i]] : null));
    found.push({ name: from ? "" : OUTSIDE, cells, apart: true });
  }
  return { rows: found, columns, depths: inside.length > 0 };
}

function told(layers) {
  const counts = layers.map((layer) => `${count(layer.count)} of ${count(layer.channels)} channels`);
  const stem = layers[0].name.slice(0, layers[0].name.lastIndexOf(".") + 1);
  if (layers.length > 1 && new Set(counts).size === 1 && layers.every((layer) => layer.name.startsWith(stem))) {
    return `${stem}${layers.map((layer) => layer.name.slice(stem.length)).join(", ")}: ${counts[0]} each`;
  }
  return layers.map((layer, i) => `${layer.name}: ${counts[i]}`).join("; ");
}

/** What the whole map says in one line. */
function whole(layers) {
  const sum = layers.reduce((total, layer) => total + layer.count, 0);
  if (!sum) return `No outlier channels in ${counted(layers.length, "layer")}`;
  const most = layers.reduce((best, layer) => (share(layer) > share(best) ? layer : best));
  return `${counted(sum, "outlier channel")} in ${counted(layers.length, "layer")}; most: ${told([most])}`;
}

/** {element, show(layers)}: the map with a line under it that says what is under the pointer or has the focus. */
export function heatMap() {
  const label = "Outlier channels by layer type and depth";
  const grid = html("div", { class: "qarvd-heat", role: "grid", "aria-label": label });
  const frame = html("div", { class: "qarvd-scroll", "data-capture-wheel": "true" }, grid);
  const key = html("div", { class: "qarvd-keys" });
  const line = html("p", { class: "qarvd-readout", "aria-live": "polite" });
  const head = html("header", {}, html("h3", {}, "Outlier channels"), key);
  const element = html("div", { class: "qarvd-part" }, head, frame, line);
  let layers = [];
  let cells = []; // [row][column]: {element, layers} or null
  let focused = null;

  const say = (cell) => {
    const text = cell ? told(cell.layers) : whole(layers);
    if (line.textContent !== text) line.textContent = text;
  };
  const cellOf = (target) => {
    const element = target.closest?.("[data-at]");
    if (!element) return null;
    const [row, column] = element.dataset.at.split(" ").map(Number);
    return cells[row]?.[column] ?? null;
  };
  const rove = (cell) => {
    grid.querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
    cell.element.setAttribute("tabindex", 0);
  };

  function step(from, key) {
    const [row, column] = from.dataset.at.split(" ").map(Number);
    const along = (list) => list.find(Boolean) ?? null;
    const across = cells[row];
    switch (key) {
      case "ArrowRight": return along(across.slice(column + 1));
      case "ArrowLeft": return along(across.slice(0, column).reverse());
      case "Home": return along(across);
      case "End": return along([...across].reverse());
      case "ArrowDown": return nearest(cells.slice(row + 1), column);
      case "ArrowUp": return nearest(cells.slice(0, row).reverse(), column);
      default: return undefined;
    }
  }

  grid.addEventListener("pointerover", (event) => say(cellOf(event.target) ?? focused));
  grid.addEventListener("pointerleave", () => say(focused));
  grid.addEventListener("focusin", (event) => {
    focused = cellOf(event.target);
    if (focused) rove(focused);
    say(focused);
  });
  grid.addEventListener("focusout", () => {
    focused = null;
    say(null);
  });
  grid.addEventListener("keydown", (event) => {
    const from = event.target.closest?.("[data-at]");
    const next = from && !event.ctrlKey && !event.metaKey && !event.altKey ? step(from, event.key) : undefined;
    if (next === undefined) return;
    swallow(event);
    next?.element.focus();
  });

  function show(next) {
    layers = next;
    const { rows, columns, depths } = arrange(layers);
    const shares = layers.map(share).filter((value) => value > 0);
    const [low, high] = shares.length ? [Math.min(...shares), Math.max(...shares)] : [0, 0];
    const shade = (value) => {
      if (!value) return 0;
      const along = low < high ? Math.log(value / low) / Math.log(high / low) : 1;
      return Math.round(NEAREST + (100 - NEAREST) * along);
    };
    grid.style.setProperty("--columns", columns);
    const least = rows.map((row) => (row.apart && row.name ? 11 + APART : 11));
    grid.style.gridTemplateRows = [...least.map((pixels) => `minmax(${pixels}px, 1fr)`), "auto"].join(" ");
    element.style.setProperty("--rows", rows.length);
    cells = rows.map(() => Array(columns).fill(null));
    const lines = rows.map((row, r) => html("div", { role: "row", class: row.apart && row.name ? "qarvd-apart" : null },
      html("span", { role: "rowheader", title: row.name }, row.name),
      ...row.cells.map((group, c) => {
        if (!group) return html("span", { class: "qarvd-none", role: "gridcell", "aria-hidden": "true" });
        const value = Math.max(...group.map(share));
        const cell = html("span", {
          role: "gridcell", tabindex: -1, "data-at": `${r} ${c}`, "data-zero": !value, "aria-label": told(group),
        });
        cell.style.setProperty("--shade", `${shade(value)}%`);
        cells[r][c] = { element: cell, layers: group };
        return cell;
      })));
    grid.replaceChildren(...lines, ...(depths ? [scale(columns)] : []));
    cells.flat().find(Boolean)?.element.setAttribute("tabindex", 0);
    key.replaceChildren(...legend(low, high, layers.some((layer) => !layer.count)));
    focused = null;
    say(null);
  }
  return { element, show };
}

/** The cell nearest to `column` in the first of `rows` that has one. */
function nearest(rows, column) {
  for (const row of rows) {
    const present = row.flatMap((cell, c) => (cell ? [[Math.abs(c - column), cell]] : []));
    if (present.length) return present.reduce((best, each) => (each[0] < best[0] ? each : best))[1];
  }
  return null;
}

/** Depths below the columns, as far as there is room for them. */
function scale(columns) {
  const every = columns <= 12 ? 1 : columns <= 60 ? 5 : 10;
  const names = Array.from({ length: columns }, (_, i) => html("span", {}, i % every ? "" : String(i)));
  return html("div", { class: "qarvd-depths", "aria-hidden": "true" }, html("span", {}, "block"), ...names);
}

function legend(low, high, zeros) {
  const parts = [];
  if (zeros) parts.push(html("i", { class: "qarvd-zero" }), html("span", {}, "none"));
  if (!high) return parts;
  if (low < high) parts.push(html("span", {}, percent(low, coarse)));
  parts.push(html("i", { class: low < high ? "qarvd-ramp" : "qarvd-full" }), html("span", {}, percent(high, coarse)));
  return parts;
}
