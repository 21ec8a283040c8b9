// Elements are made one by one and text is set as text: workflows come from strangers, so no string is markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An HTML element. */
export function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

const minus = (text) => text.replace(/-/g, "\u2212");

/** `value` to three significant digits, as a person would write it. */
export function number(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(1).split("e");
    return minus(`${mantissa.replace(/\.0$/, "")}e${Number(exponent)}`);
  }
  return minus(size >= 100 ? count(Math.round(value)) : value.toPrecision(digits));
}

/** `value` in as few characters as say it, for an axis. */
export function short(value) {
  const text = number(value);
  return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
}

/** How to write the numbers of a column: with as many decimals as give the largest three significant digits. */
export function column(values) {
  if (values.every(Number.isInteger)) return (value) => minus(count(value));
  const largest = Math.max(...values.map(Math.abs));
  const decimals = Math.max(0, Math.min(4, 2 - Math.floor(Math.log10(largest))));
  return (value) => {
    const text = value.toFixed(decimals);
    return value !== 0 && Number(text) === 0 ? number(value) : minus(text);
  };
}

/** A whole number, with thousands set apart. */
export function count(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** `count` of a thing: "1 frame", "2 frames". */
export function counted(value, thing) {
  return `${count(value)} ${thing}${value === 1 ? "" : "s"}`;
}

/** A share as a percentage. */
export function percent(share, written = number) {
  return `${written(share * 100)}\u202f%`;
}

/** Calls `draw(width, height)` when the size of `element` changes, once a frame at most; returns what ends that. */
export function onSize(element, draw) {
  let frame = 0;
  const observer = new ResizeObserver(() => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => {
      if (element.clientWidth && element.clientHeight) draw(element.clientWidth, element.clientHeight);
    });
  });
  observer.observe(element);
  return () => {
    cancelAnimationFrame(frame);
    observer.disconnect();
  };
}

/** Keep `event` from the canvas below, which has its own use for most keys. */
export function swallow(event) {
  event.preventDefault();
  event.stopPropagation();
}
