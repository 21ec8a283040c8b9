// Sensitivity curve: the share of each chunk in the error of the final video.

import { chart } from "../chart.js";
import { counted, html, number, percent, short } from "../dom.js";

function key(look, text) {
  const swatch = html("i", { class: `qarvd-swatch-${look}`, "aria-hidden": "true" });
  return html("span", { class: "qarvd-key" }, swatch, text);
}

function build(body) {
  const readout = html("p", { class: "qarvd-readout qarvd-single" });
  const caption = html("p", { class: "qarvd-caption" });
  let data = null;

  const told = (i) => {
    const interval = data.prompts > 1 ? ` (${number(100 * data.low[i])} to ${percent(data.high[i])})` : "";
    return `Chunk ${i + 1}: ${percent(data.share[i])}${interval}, fitted ${percent(data.fitted_share[i])}`;
  };
  const most = () => {
    const share = Math.max(...data.share);
    return `Chunk ${data.share.indexOf(share) + 1} matters most: ${percent(share)} of the error`;
  };
  const curve = chart("Share of the final error, by chunk", (index) => {
    readout.textContent = data ? (index === null ? most() : told(index)) : "";
  });

  body.append(
    html("header", {}, html("h3", {}, "Share of the final error, by chunk"),
      html("div", { class: "qarvd-keys" }, key("line", "measured, 95\u202f% interval"), key("dashed", "fitted decay"))),
    curve.element, readout, caption,
  );
  return {
    ...curve,
    show({ qarvd_sensitivity: next }) {
      data = next;
      const over = data.prompts ? counted(data.prompts, "prompt") : "Not measured";
      const decay = data.rate
        ? `effect on later frames decays at ${number(data.rate)} per chunk`
        : "no decay from chunk to chunk";
      caption.textContent = `${over}; ${decay}.`;
      curve.draw({
        series: [
          { values: data.fitted_share, look: "dashed", color: 1 },
          { values: data.share, low: data.low, high: data.high, look: "line", color: 0 },
        ],
        place: "chunk", tick: (share) => percent(share, short), told, from: 0,
      });
    },
  };
}

export const sensitivity = {
  name: "sensitivity",
  label: "Sensitivity of each chunk",
  empty: "The share of each chunk in the final error appears here when the node has run.",
  payloads: ["qarvd_sensitivity"],
  width: 400, height: 250, least: 170,
  build,
};
