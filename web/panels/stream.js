// Stream panel: the frames so far, how far the stream is and how fast it comes.

import { readChunk } from "../data.js";
import { counted, html, number, svg, swallow } from "../dom.js";
import { player, TINY } from "../player.js";

const PLAY = "M4 2.5v11l9-5.5z";
const PAUSE = "M4 2.5h3v11H4zM9 2.5h3v11H9z";
const GONE = "The preview file is no longer there. Run the node again to see the frames.";
const NOT_KEPT = "The frames are not kept with the workflow. Run the node again to see them.";

function figure(label) {
  const value = html("dd");
  return {
    element: html("div", {}, html("dt", {}, label), value),
    set(text) {
      value.textContent = text ?? "\u2013";
    },
  };
}

function playButton(toggle) {
  const shape = svg("path", {});
  const element = html("button", { type: "button", class: "qarvd-play" },
    svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, shape));
  element.addEventListener("click", toggle);
  element.addEventListener("keydown", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    swallow(event); // the canvas pans while Space is held
    if (!event.repeat) toggle();
  });
  return {
    element,
    set(playing) {
      shape.setAttribute("d", playing ? PAUSE : PLAY);
      element.setAttribute("aria-label", playing ? "Pause" : "Play");
      element.title = playing ? "Pause" : "Play";
    },
  };
}

function build(body, { host, reveal, save }) {
  const canvas = html("canvas", { role: "img", "aria-label": "Frames received so far" });
  const image = html("img", { alt: "Preview of the finished stream", hidden: true });
  const note = html("p", { class: "qarvd-note", role: "status", hidden: true });
  const status = html("p", { class: "qarvd-status" });
  const bar = html("progress", { "aria-label": "Chunks done", max: 1, value: 0 });
  const latency = figure("to first frame");
  const speed = figure("pixel frames/s");
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let data = null; // as in a qarvd_stream payload
  let running = null; // {prompt_id, chunks} while a stream comes in
  let source = ""; // of the image
  let missing = false;

  const frames = player(canvas, () => {
    canvas.dataset.frames = frames.frames;
    look();
  });
  const button = playButton(() => {
    playing = !playing;
    look();
  });

  body.append(
    html("div", { class: "qarvd-stage" }, canvas, image, note),
    bar,
    html("footer", {}, button.element, status, html("dl", {}, latency.element, speed.element)),
  );

  image.addEventListener("load", () => look());
  image.addEventListener("error", () => {
    missing = true;
    look();
  });

  /** The finished stream's file, wanted where no frames are in memory or some were dropped. */
  function wanted() {
    if (running || !data?.preview || (frames.frames && !frames.dropped)) return "";
    return host.api.apiURL(`/view?${new URLSearchParams(data.preview)}`);
  }

  function look() {
    const file = wanted();
    if (file !== source) {
      source = file;
      missing = false;
      if (file) image.src = `${file}&rand=${Math.random()}`; // file names come again after a restart
      else image.removeAttribute("src");
    }
    const loaded = Boolean(source) && !missing && image.complete && image.naturalWidth > 0;
    if (loaded && !playing && !frames.frames) still();
    image.hidden = !loaded || !playing;
    canvas.hidden = loaded ? playing : !frames.frames;
    image.classList.toggle("qarvd-tiny", image.naturalWidth <= TINY);
    const nothing = !loaded && !frames.frames;
    note.hidden = !nothing || Boolean(running) || (Boolean(source) && !missing);
    note.textContent = note.hidden ? "" : missing ? GONE : NOT_KEPT;
    button.set(playing);
    button.element.disabled = nothing;
    frames.play(playing);
    tell();
  }

  /** An animated image cannot be paused, so its first frame stands in for it. */
  function still() {
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.classList.toggle("qarvd-tiny", image.naturalWidth <= TINY);
    canvas.getContext("2d").drawImage(image, 0, 0);
  }

  function tell() {
    if (!data) return;
    const of = running?.chunks ? ` of ${running.chunks}` : "";
    const dropped = frames.dropped && !canvas.hidden ? ", the newest are shown" : "";
    const whole = `${data.stopped ? "Stopped after " : ""}${counted(data.chunks, "chunk")}`;
    status.replaceChildren(
      html("strong", {}, running ? `Chunk ${data.chunks}${of}` : whole),
      html("span", {}, `${counted(data.pixel_frames, "frame")}${dropped}`),
    );
    bar.hidden = Boolean(running) && !running.chunks;
    bar.max = running?.chunks || 1;
    bar.value = running ? data.chunks : data.stopped ? 0 : 1;
    latency.set(data.first_frame_seconds === null ? null : `${number(data.first_frame_seconds)} s`);
    speed.set(data.pixel_frames_per_second === null ? null : number(data.pixel_frames_per_second));
  }

  return {
    start: frames.start,
    stop: () => frames.stop(),
    show({ qarvd_stream: next }) {
      running = null;
      data = next;
      look();
    },
    reset() {
      [running, data] = [null, null];
      frames.reset();
    },
    chunk(raw) {
      const event = readChunk(raw);
      if (!event) return;
      if (event.chunk === 0 || running?.prompt_id !== event.prompt_id) {
        this.reset();
        running = { prompt_id: event.prompt_id, chunks: event.chunks };
      }
      data = {
        chunks: event.chunk + 1,
        latent_frames: null,
        pixel_frames: event.pixel_frames,
        first_frame_seconds: event.first_frame_seconds,
        pixel_frames_per_second: event.pixel_frames_per_second,
        preview: null,
      };
      save("qarvd_stream", data);
      if (event.sprite) frames.add(event);
      reveal("running");
      look();
    },
    /** The run `prompt_id` is over, whole or not. */
    ended(prompt_id, whole) {
      if (!running || running.prompt_id !== prompt_id) return;
      data = { ...data, stopped: !whole && !(data.chunks >= running.chunks) }; // another node may have failed
      running = null;
      reveal("shown");
      look();
    },
  };
}

const common = {
  label: "Stream", payloads: ["qarvd_stream"], width: 340, height: 380, least: 200, build,
};

const empty = (what) => `Frames appear here, chunk by chunk, while the ${what} runs.`;

export const stream = { ...common, name: "stream", empty: empty("node") };

export const sampler = { ...common, name: "sampler", empty: empty("sampler") };
