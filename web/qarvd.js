// Panels on the nodes of qarvd. The page loads every file of this folder; this one alone does something when loaded.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { html } from "./dom.js";
import { attach } from "./panel.js";
import { compare } from "./panels/compare.js";
import { outliers, quantized } from "./panels/outliers.js";
import { sensitivity } from "./panels/sensitivity.js";
import { sampler, stream } from "./panels/stream.js";

const PANELS = {
  QarvdFrameSensitivity: sensitivity,
  QarvdDetectOutliers: outliers,
  QarvdQuantize: quantized,
  QarvdSampler: sampler,
  QarvdStream: stream,
  QarvdCompare: compare,
};

const views = new WeakMap(); // of nodes

/** Nodes of `graph`, those in subgraphs too. */
function* nodesOf(graph) {
  for (const node of graph?.nodes ?? []) {
    yield node;
    yield* nodesOf(node.subgraph);
  }
}

/** The node an event speaks of: "7", or "3:7" for node 7 in the subgraph of node 3. */
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const step of String(id).split(":")) {
    node = graph?.getNodeById(step) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** Have the page save its draft, with what panels got: after a run it would wait for the next click. */
function keep() {
  app.canvas?.emitBeforeChange?.();
  app.canvas?.emitAfterChange?.();
}

function ended(whole) {
  return ({ detail }) => {
    for (const node of nodesOf(app.rootGraph ?? app.graph)) views.get(node)?.ended?.(detail?.prompt_id ?? null, whole);
    keep();
  };
}

app.registerExtension({
  name: "qarvd.panels",
  beforeRegisterNodeDef(nodeType, { name }) {
    const kind = PANELS[name];
    if (!kind) return;
    const before = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function (...args) {
      const result = before?.apply(this, args);
      views.set(this, attach(this, kind, { api, app }));
      return result;
    };
  },
  setup() {
    document.head.append(html("link", { rel: "stylesheet", href: new URL("./qarvd.css", import.meta.url).href }));
    api.addEventListener("qarvd.chunk", ({ detail }) => views.get(nodeOf(detail?.node))?.chunk?.(detail));
    api.addEventListener("executing", ({ detail }) => views.get(nodeOf(detail))?.begin?.());
    api.addEventListener("execution_success", ended(true));
    api.addEventListener("execution_error", ended(false));
    api.addEventListener("execution_interrupted", ended(false));
    document.documentElement.dataset.qarvd = "ready";
  },
  /** Outputs of an earlier run, when a person opens it from the history. */
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) {
      const node = nodeOf(id);
      if (views.has(node)) node.onExecuted?.(output);
    }
  },
});
