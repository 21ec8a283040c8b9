// Compare panel: how close two videos are, frame by frame and chunk by chunk.

import { chart } from "../chart.js";
import { counted, html, number, short } from "../dom.js";

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const decibels = (value) => (value === null ? "identical" : `${number(value)} dB`);

/** First frame of each chunk; none where the chunks do not account for the frames. */
function starts({ chunk_frames, first_chunk_frames, drift, psnr }) {
  const first = first_chunk_frames || chunk_frames;
  const found = drift.map((_, chunk) => (chunk ? first + (chunk - 1) * chunk_frames : 0));
  const last = found[found.length - 1];
  return last < psnr.length && psnr.length <= (found.length > 1 ? last + chunk_frames : first) ? found : [];
}

function build(body) {
  const readout = html("p", { class: "qarvd-readout" });
  let data = null;
  let first = [];

  const whole = () => {
    const measured = data.psnr.filter((value) => value !== null);
    const closeness = measured.length ? `mean PSNR ${decibels(mean(measured))}` : "identical in every frame";
    const least = Math.min(...measured);
    const worst = measured.length ? `, least ${decibels(least)} in frame ${data.psnr.indexOf(least) + 1}` : "";
    return `${counted(data.psnr.length, "frame")}: ${closeness}${worst}; mean SSIM ${number(mean(data.ssim))}`;
  };
  const frame = (i) => {
    const chunk = first.length ? `, chunk ${first.filter((start) => start <= i).length}` : "";
    return `Frame ${i + 1}${chunk}: PSNR ${decibels(data.psnr[i])}, SSIM ${number(data.ssim[i])}`;
  };
  const chunk = (i) => `Chunk ${i + 1}: mean squared error ${number(data.drift[i])}`;
  const say = (told) => (index) => {
    readout.textContent = data ? (index === null ? whole() : told(index)) : "";
  };
  const charts = [
    ["PSNR by frame, dB", chart("PSNR by frame, in decibels", say(frame))],
    ["SSIM by frame", chart("SSIM by frame", say(frame))],
    ["Drift by chunk, mean squared error", chart("Drift by chunk, mean squared error", say(chunk))],
  ];
  for (const [title, { element }] of charts) body.append(html("h3", {}, title), element);
  body.append(readout);

  const [psnr, ssim, drift] = charts.map(([, each]) => each);
  return {
    show({ qarvd_compare: next }) {
      data = next;
      first = starts(data);
      const marks = first.slice(1);
      const frames = { place: "frame", tick: short, told: frame, from: null, marks };
      psnr.draw({ ...frames, series: [{ values: data.psnr, look: "line", color: 0 }] });
      ssim.draw({ ...frames, series: [{ values: data.ssim, look: "line", color: 2 }] });
      const bars = [{ values: data.drift, look: "bars", color: 1 }];
      drift.draw({ place: "chunk", tick: short, told: chunk, from: 0, series: bars });
    },
    start: () => charts.forEach(([, each]) => each.start()),
    stop: () => charts.forEach(([, each]) => each.stop()),
  };
}

export const compare = {
  name: "compare",
  label: "Comparison of two videos",
  empty: "PSNR and SSIM of each frame and the drift of each chunk appear here when the node has run.",
  payloads: ["qarvd_compare"],
  width: 400, height: 360, least: 260,
  build,
};
