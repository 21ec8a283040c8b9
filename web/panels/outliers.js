// Outlier panels: the heat map alone, and with the table of what was quantized below it.

import { heatMap } from "./heat.js";
import { tableView } from "./table.js";

function build(body, withTable) {
  const map = heatMap();
  const table = withTable ? tableView("What each layer became") : null;
  body.append(map.element, ...(table ? [table.element] : []));
  return {
    show({ qarvd_outliers: outliers, qarvd_table: rows }) {
      map.element.hidden = !outliers;
      if (outliers) map.show(outliers.layers);
      if (!table) return;
      table.element.hidden = !rows;
      if (rows) table.show(rows);
    },
  };
}

export const outliers = {
  name: "outliers",
  label: "Outlier channels of each layer",
  empty: "A map of the outlier channels, layer by layer, appears here when the node has run.",
  payloads: ["qarvd_outliers"],
  width: 420, height: 250, least: 170,
  build: (body) => build(body, false),
};

export const quantized = {
  name: "quantized",
  label: "Outlier channels and report",
  empty: "A map of the outlier channels and a table of the layers appear here when the node has run.",
  payloads: ["qarvd_outliers", "qarvd_table"],
  width: 480, height: 420, least: 260,
  build: (body) => build(body, true),
};
