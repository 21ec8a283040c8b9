// A small chart over counted things, chunks or frames, with a cursor that follows the pointer and the arrow keys.

import { count as grouped, onSize, svg, swallow } from "./dom.js";
import { stride, ticks } from "./ticks.js";

const CHARACTER = 6.2; // mean width of one at 10 px
const TOP = 9;
const RIGHT = 8;
const BOTTOM = 20;
const ROOMY = 7; // pixels between points that leave room for dots
const APART = 10; // pixels between faint lines that can be told apart

/**
 * A chart that is empty until `draw`; `select` is told the index at the cursor, or null where there is none.
 * `draw` takes {series, place, tick, told, from, marks}: series of {values, color, look: "line", "dashed" or "bars", and
 * for whiskers low and high}; `place` names what is counted (from 1 on screen); `tick(value)` writes an axis number;
 * `told(index)` says what is at the cursor; `from` is the least the axis begins at (null: the least value); faint lines
 * stand before the places `marks`. A value of null is drawn on the upper edge.
 */
export function chart(label, select) {
  const element = svg("svg", {
    class: "qarvd-chart", tabindex: 0, role: "slider", "aria-label": label, "aria-valuemin": 1,
  });
  let data = null;
  let at = null;
  let frame = null; // where things are: {left, top, width, height, band, y}

  function paint(width, height) {
    if (!data) return;
    const left = place(width, height);
    element.setAttribute("viewBox", `0 0 ${width} ${height}`);
    element.replaceChildren(...axes(frame, data, left), ...data.series.map((series) => drawn(series, frame)), svg("g"));
    point();
  }

  function place(width, height) {
    const all = data.series.flatMap((series) => [...series.values, ...(series.low ?? []), ...(series.high ?? [])]);
    const present = all.filter((value) => value !== null);
    const low = present.length ? Math.min(...present) : 0;
    const high = present.length ? Math.max(...present) : 1;
    const inner = Math.max(10, height - TOP - BOTTOM);
    const steps = ticks(data.from ?? low, high, Math.min(4, inner / 26));
    const names = steps.map((step) => (present.length ? data.tick(step) : ""));
    const left = 8 + CHARACTER * Math.max(data.place.length, ...names.map((name) => name.length));
    const across = Math.max(10, width - left - RIGHT);
    const [least, most] = [steps[0], steps.at(-1)];
    frame = {
      left, top: TOP, width: across, height: inner, band: across / data.count, steps, names,
      x: (index) => left + (across * (index + 0.5)) / data.count,
      y: (value) => (value === null ? TOP : TOP + inner * (1 - (value - least) / (most - least))),
    };
    return left;
  }

  function point() {
    const layer = element.lastElementChild;
    if (!layer || !frame) return;
    if (at === null) {
      layer.replaceChildren();
      return;
    }
    const x = frame.x(at);
    const rule = svg("line", { class: "qarvd-cursor", x1: x, x2: x, y1: frame.top, y2: frame.top + frame.height });
    const dots = data.series.filter((s) => s.look !== "dashed").map((s, i) =>
      svg("circle", { class: `qarvd-spot qarvd-color-${s.color ?? i}`, cx: x, cy: frame.y(s.values[at]), r: 4 }));
    layer.replaceChildren(rule, ...dots);
  }

  function move(index) {
    at = index;
    const spoken = at ?? 0;
    element.setAttribute("aria-valuenow", spoken + 1);
    element.setAttribute("aria-valuetext", data ? data.told(spoken) : "");
    point();
    select(at);
  }

  element.addEventListener("pointermove", (event) => {
    if (!data || !frame) return;
    const box = element.getBoundingClientRect(); // zoomed with the canvas, the drawing is not
    const x = ((event.clientX - box.left) * element.clientWidth) / box.width - frame.left;
    move(Math.max(0, Math.min(data.count - 1, Math.floor(x / frame.band))));
  });
  element.addEventListener("pointerleave", () => document.activeElement !== element && move(null));
  element.addEventListener("focus", () => data && at === null && element.matches(":focus-visible") && move(0));
  element.addEventListener("blur", () => move(null));
  element.addEventListener("keydown", (event) => {
    if (!data) return;
    const now = at ?? 0;
    const page = Math.max(1, Math.round(data.count / 10));
    const moves = {
      ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1,
      PageUp: now + page, PageDown: now - page, Home: 0, End: data.count - 1,
    };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    swallow(event);
    move(Math.max(0, Math.min(data.count - 1, moves[event.key])));
  });

  let release = null;
  return {
    element,
    draw(next) {
      data = { ...next, count: next.series[0].values.length };
      element.setAttribute("aria-valuemax", data.count);
      move(at === null || at >= data.count ? null : at);
      paint(element.clientWidth || 300, element.clientHeight || 80);
    },
    start() {
      release ??= onSize(element, paint);
    },
    stop() {
      release?.();
      release = null;
    },
  };
}

function axes(frame, data, left) {
  const parts = [];
  for (const [i, value] of frame.steps.entries()) {
    const y = frame.y(value);
    parts.push(
      svg("line", { class: i ? "qarvd-grid" : "qarvd-axis", x1: left, x2: left + frame.width, y1: y, y2: y }),
      svg("text", { x: left - 5, y: y + 3.5, "text-anchor": "end" }, frame.names[i]),
    );
  }
  const marks = data.marks ?? [];
  for (const mark of marks.length * APART < frame.width ? marks : []) {
    const x = frame.left + mark * frame.band;
    parts.push(svg("line", { class: "qarvd-mark", x1: x, x2: x, y1: frame.top, y2: frame.top + frame.height }));
  }
  parts.push(svg("text", { x: left - 5, y: frame.top + frame.height + 15, "text-anchor": "end" }, data.place));
  const every = stride(data.count, frame.band, 8 + CHARACTER * String(data.count).length);
  for (let i = 0; i < data.count; i += 1) {
    if ((i + 1) % every) continue;
    const name = grouped(i + 1);
    const x = Math.min(frame.x(i), left + frame.width + RIGHT - (CHARACTER * name.length) / 2);
    parts.push(svg("text", { x, y: frame.top + frame.height + 15, "text-anchor": "middle" }, name));
  }
  return parts;
}

function drawn(series, frame) {
  const group = svg("g", { class: `qarvd-series qarvd-color-${series.color ?? 0}` });
  if (series.look === "bars") {
    const wide = Math.max(1, Math.min(26, frame.band * 0.62));
    const base = frame.top + frame.height;
    group.append(...series.values.map((value, i) => {
      const y = Math.min(frame.y(value), base - 0.5); // a bar of nothing shows, too
      return svg("rect", { x: frame.x(i) - wide / 2, y, width: wide, height: base - y, rx: Math.min(2, wide / 4) });
    }));
    return group;
  }
  if (series.low) {
    const cap = Math.min(4, frame.band / 4);
    const whiskers = series.values.map((_, i) => {
      const [x, low, high] = [frame.x(i), frame.y(series.low[i]), frame.y(series.high[i])];
      return `M${x - cap} ${high}H${x + cap}M${x} ${high}V${low}M${x - cap} ${low}H${x + cap}`;
    });
    group.append(svg("path", { class: "qarvd-whiskers", d: whiskers.join("") }));
  }
  const look = series.look === "dashed" ? "qarvd-dashed" : "qarvd-line";
  group.append(svg("path", { class: look, d: path(series.values, frame) }));
  const single = series.values.length === 1;
  for (const [i, value] of series.values.entries()) {
    if (value === null) group.append(svg("circle", { class: "qarvd-open", cx: frame.x(i), cy: frame.y(null), r: 2.5 }));
    else if (series.look !== "dashed" && (frame.band > ROOMY || single)) {
      group.append(svg("circle", { class: "qarvd-dot", cx: frame.x(i), cy: frame.y(value), r: 2.6 }));
    }
  }
  return group;
}

function path(values, frame) {
  let pen = "M";
  let d = "";
  for (const [i, value] of values.entries()) {
    if (value === null) {
      pen = "M";
      continue;
    }
    d += `${pen}${frame.x(i).toFixed(1)} ${frame.y(value).toFixed(1)}`;
    pen = "L";
  }
  return d;
}
