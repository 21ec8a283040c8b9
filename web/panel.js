// A panel on a node: a DOM widget that both renderers mount, and data that is saved with the workflow.

import { read } from "./data.js";
import { html } from "./dom.js";

const MARGIN = 20; // what the legacy renderer leaves above and below a DOM widget

/** What the nodes of this session got: undoing makes them anew from a state that may be older than the run. */
const newest = new Map();
const place = (node) => `${node.graph?.id} ${node.id} ${node.type}`;

/** Call `after` whenever the node calls its hook `name`, whoever else listens. */
function chain(node, name, after) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    after(...args);
    return result;
  };
}

/** Nearest element up to `root` that has more than it shows. */
function scroller(target, root) {
  for (let at = target; at && at !== root.parentElement; at = at.parentElement) {
    if (at.dataset?.captureWheel && at.scrollHeight > at.clientHeight) return at;
  }
  return null;
}

/** Let the canvas zoom and pan below `root`; Vue nodes see to that themselves. */
function passThrough(root, canvas) {
  const inVue = () => root.closest("[data-node-id]");
  root.addEventListener("wheel", (event) => {
    if (inVue()) return;
    event.stopPropagation();
    if (!event.ctrlKey && scroller(event.target, root)) return;
    event.preventDefault();
    canvas().processMouseWheel(event);
  }, { passive: false });
  const middle = {
    pointerdown: ["processMouseDown", (event) => event.button === 1],
    pointermove: ["processMouseMove", (event) => event.buttons & 4],
    pointerup: ["processMouseUp", (event) => event.button === 1],
  };
  for (const [type, [method, wanted]] of Object.entries(middle)) {
    root.addEventListener(type, (event) => {
      if (!inVue() && wanted(event)) canvas()[method](event);
    });
  }
}

/**
 * Put a panel on `node`. `kind` is {name, label, empty, payloads, width, height, least, build}; `build(body, tools)`
 * gives {show(data), start?, stop?, reset?, chunk?, ended?}. Returns that and begin(), for events to be handed on.
 */
export function attach(node, kind, host) {
  const empty = html("p", { class: "qarvd-empty" }, kind.empty);
  const body = html("div", { class: "qarvd-body", hidden: true });
  const root = html("section", {
    class: "qarvd-panel", "aria-label": kind.label, "data-qarvd-panel": kind.name, "data-state": "empty",
  }, empty, body);
  root.style.setProperty("--qarvd-least", `${kind.least}px`);

  const saved = () => {
    const all = node.properties?.qarvd;
    const data = {};
    for (const name of kind.payloads) {
      const clean = read(name, all?.[name]);
      if (clean) data[name] = clean;
    }
    return data;
  };
  const reveal = (state) => {
    empty.hidden = true;
    body.hidden = false;
    root.dataset.state = state;
  };
  const save = (name, data) => {
    node.properties.qarvd = { ...node.properties.qarvd, [name]: data };
    newest.set(place(node), node.properties.qarvd);
  };
  const view = kind.build(body, { host, reveal, save });
  /** The node runs anew: what is shown is of an earlier run. */
  view.begin = () => {
    if (root.dataset.state === "running") return; // a page that connects again is told once more
    view.reset?.();
    empty.hidden = false;
    body.hidden = true;
    root.dataset.state = "empty";
    delete node.properties.qarvd;
    newest.delete(place(node));
  };
  const refresh = () => {
    const data = saved();
    if (!Object.keys(data).length) return;
    reveal("shown");
    view.show(data);
  };

  chain(node, "onExecuted", (output) => {
    let found = false;
    for (const name of kind.payloads) {
      const clean = read(name, output?.[name]?.[0]);
      if (!clean) continue;
      save(name, clean);
      found = true;
    }
    if (found) refresh();
  });
  chain(node, "onConfigure", () => {
    if (!node.properties.qarvd && newest.has(place(node))) node.properties.qarvd = newest.get(place(node));
    refresh();
  });
  chain(node, "onAdded", () => view.start?.());
  chain(node, "onRemoved", () => view.stop?.());

  passThrough(root, () => host.app.canvas);
  const widget = node.addDOMWidget(`qarvd_${kind.name}`, `QARVD_${kind.name.toUpperCase()}`, root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => kind.least + MARGIN,
  });
  widget.serialize = false;

  const [width, height] = node.computeSize();
  node.setSize([
    Math.max(node.size[0], width, kind.width),
    Math.max(node.size[1], height + kind.height - kind.least),
  ]);
  return view;
}
