// Plays sprites of frames on a canvas, as they come, round and round.

const MEMORY = 96 * 2 ** 20; // bytes of frames kept; the oldest go first
export const TINY = 260; // pixels: frames up to this size are enlarged pixel by pixel
const RATE = 16; // pixel frames per second of the models' videos
const [SLOWEST, FASTEST] = [2, 24];

const rate = (wanted) => Math.max(SLOWEST, Math.min(FASTEST, wanted));

async function decode(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return createImageBitmap(image);
}

/** `changed()` is called when there are more frames, or fewer. */
export function player(canvas, changed) {
  const pen = canvas.getContext("2d");
  let chunks = []; // {bitmap, frames, width, height, start}: `start` counts from the first frame of the run
  let run = 0;
  let waiting = Promise.resolve();
  let end = 0;
  let head = -1; // the frame that is shown
  let seen = 0;
  let perSecond = RATE;
  let playing = true;
  let visible = true;
  let timer = 0;
  let due = 0;

  const first = () => chunks[0]?.start ?? end;

  function paint(frame) {
    const chunk = chunks.find((each) => frame >= each.start && frame < each.start + each.frames);
    if (!chunk) return;
    const { bitmap, width, height } = chunk;
    if (canvas.width !== width || canvas.height !== height) {
      [canvas.width, canvas.height] = [width, height];
      canvas.classList.toggle("qarvd-tiny", Math.max(width, height) <= TINY);
    }
    pen.clearRect(0, 0, width, height);
    pen.drawImage(bitmap, (frame - chunk.start) * width, 0, width, height, 0, 0, width, height);
    head = frame;
    seen = Math.max(seen, frame + 1);
    canvas.dataset.frame = frame + 1;
  }

  function tick(now) {
    timer = requestAnimationFrame(tick);
    if (now < due) return;
    due = Math.max(due + 1000 / perSecond, now);
    paint(head + 1 < end && head + 1 >= first() ? head + 1 : first());
  }

  function wind() {
    cancelAnimationFrame(timer);
    timer = playing && visible && end - first() > 1 ? requestAnimationFrame(tick) : 0;
  }

  function forget(kept) {
    let bytes = 0;
    const from = kept.findLastIndex(({ frames, width, height }) => (bytes += 4 * frames * width * height) > MEMORY);
    const start = Math.min(from + 1, kept.length - 1); // the newest stays, whatever its size
    kept.slice(0, Math.max(0, start)).forEach(({ bitmap }) => bitmap.close());
    return kept.slice(Math.max(0, start));
  }

  async function take({ sprite, frames, width, height, pixel_frames, frames_per_second }, mine) {
    const bitmap = await decode(sprite).catch(() => null); // a sprite that is no picture leaves a gap, no more
    if (!bitmap) return;
    if (mine !== run) {
      bitmap.close();
      return;
    }
    const again = head < seen - 1; // it had begun again: the new frames come next
    chunks = forget([...chunks, { bitmap, frames, width, height, start: end }]);
    if (again) head = end - 1;
    end += frames;
    perSecond = rate(frames_per_second ?? (RATE * end) / Math.max(1, pixel_frames));
    if (head < 0) paint(first());
    else if (!playing && !timer && matchMedia("(prefers-reduced-motion: reduce)").matches) paint(end - 1);
    wind();
    changed();
  }

  const sight = new IntersectionObserver((entries) => {
    visible = entries.at(-1).isIntersecting;
    wind();
  });

  return {
    get frames() { return end - first(); },
    get dropped() { return first(); },
    reset() {
      run += 1;
      chunks.forEach(({ bitmap }) => bitmap.close());
      chunks = [];
      [end, head, seen] = [0, -1, 0];
      wind();
      changed();
    },
    add(chunk) {
      const mine = run;
      waiting = waiting.then(() => take(chunk, mine));
    },
    play(on) {
      playing = on;
      due = 0;
      wind();
    },
    start: () => sight.observe(canvas),
    stop() {
      sight.disconnect();
      visible = false;
      this.reset();
    },
  };
}
