// What a panel may show. Every payload is checked here, be it from our node or from a stranger's workflow file.

const LONGEST = 20000; // numbers in a list
const MOST_LAYERS = 5000;
const DEEPEST = 500;
const MOST_CELLS = 50000;
const LONGEST_TEXT = 300;

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isShare = (value) => isNumber(value) && value >= 0 && value <= 1 + 1e-6;
const isCount = (value) => Number.isInteger(value) && value >= 0;
const isPositive = (value) => isNumber(value) && value >= 0;
const isText = (value) => typeof value === "string" && value.length <= LONGEST_TEXT;

const optional = (test) => (value) => value === null || value === undefined || test(value);

function list(value, test, length = undefined) {
  const fits = Array.isArray(value) && value.length > 0 && value.length <= LONGEST;
  return fits && (length === undefined || value.length === length) && value.every(test) ? Array.from(value) : null;
}

function sensitivity(raw) {
  const share = list(raw.share, isShare);
  if (!share || !isCount(raw.prompts) || !isPositive(raw.rate)) return null;
  const others = {};
  for (const key of ["low", "high", "fitted_share", "per_affected", "chunk_frames"]) {
    others[key] = list(raw[key], isPositive, share.length);
    if (!others[key]) return null;
  }
  return { share, ...others, prompts: raw.prompts, rate: raw.rate };
}

function outliers(raw) {
  const fits = ({ name, type, depth, channels, count }) =>
    isText(name) && isText(type) && isCount(channels) && isCount(count) && count <= channels &&
    optional((value) => isCount(value) && value <= DEEPEST)(depth);
  if (!Array.isArray(raw.layers) || !raw.layers.length || raw.layers.length > MOST_LAYERS) return null;
  if (!raw.layers.every((layer) => layer && fits(layer))) return null;
  const layers = raw.layers.map(({ name, type, depth, channels, count }) =>
    ({ name, type, depth: depth ?? null, channels, count }));
  const deepest = Math.max(...layers.map(({ depth }) => depth ?? 0));
  const isMap = new Set(layers.map(({ type }) => type)).size * (deepest + 1) <= MOST_CELLS;
  return isMap ? { layers } : null;
}

function table(raw) {
  const columns = list(raw.columns, isText);
  if (!columns || !Array.isArray(raw.rows) || raw.rows.length * columns.length > MOST_CELLS) return null;
  const isCell = optional((value) => isText(value) || isNumber(value));
  const rows = raw.rows.map((row) => list(row, isCell, columns.length));
  return rows.every(Boolean) ? { columns, rows, note: isText(raw.note) ? raw.note : null } : null;
}

function preview(raw) {
  if (!raw || typeof raw !== "object") return null;
  const fits = isText(raw.filename) && raw.filename && isText(raw.subfolder) && ["output", "temp"].includes(raw.type);
  return fits ? { filename: raw.filename, subfolder: raw.subfolder, type: raw.type } : null;
}

function stream(raw) {
  const { chunks, latent_frames, pixel_frames, first_frame_seconds, pixel_frames_per_second } = raw;
  const counts = isCount(chunks) && isCount(pixel_frames) && optional(isCount)(latent_frames);
  const speeds = [first_frame_seconds, pixel_frames_per_second].every(optional(isPositive));
  if (!counts || !speeds) return null;
  return {
    chunks,
    latent_frames: latent_frames ?? null,
    pixel_frames,
    first_frame_seconds: first_frame_seconds ?? null,
    pixel_frames_per_second: pixel_frames_per_second ?? null,
    preview: preview(raw.preview),
  };
}

function compare(raw) {
  const ssim = list(raw.ssim, isNumber);
  const psnr = list(raw.psnr, optional(isNumber), ssim?.length);
  const drift = list(raw.drift, isPositive);
  if (!ssim || !psnr || !drift) return null;
  const count = (value) => (isCount(value) ? value : null);
  return {
    psnr, ssim, drift, chunk_frames: count(raw.chunk_frames), first_chunk_frames: count(raw.first_chunk_frames),
  };
}

const READERS = {
  qarvd_sensitivity: sensitivity,
  qarvd_outliers: outliers,
  qarvd_table: table,
  qarvd_stream: stream,
  qarvd_compare: compare,
};

/** A clean copy of payload `name`, or null where it is not what it should be. */
export function read(name, raw) {
  return raw && typeof raw === "object" ? READERS[name](raw) : null;
}

const WIDEST = 16384; // pixels of a sprite: browsers draw no wider image

/** A clean copy of a `qarvd.chunk` event, or null. */
export function readChunk(raw) {
  if (!raw || typeof raw !== "object") return null;
  const { chunk, chunks, first_frame, frames, width, height, sprite, pixel_frames } = raw;
  const counts = [chunk, first_frame, frames, width, height, pixel_frames].every(isCount) && optional(isCount)(chunks);
  const speeds = optional(isPositive)(raw.first_frame_seconds) && optional(isPositive)(raw.pixel_frames_per_second);
  const drawable = frames * width > 0 && height > 0 && frames * width <= WIDEST && height <= WIDEST;
  const picture = typeof sprite === "string" && /^data:image\/(png|webp|jpeg);base64,/.test(sprite);
  if (!counts || !speeds) return null;
  return {
    chunk, chunks: chunks ?? null, first_frame, frames, width, height, pixel_frames,
    first_frame_seconds: raw.first_frame_seconds ?? null,
    pixel_frames_per_second: raw.pixel_frames_per_second ?? null,
    frames_per_second: isPositive(raw.frames_per_second) ? raw.frames_per_second : null,
    sprite: drawable && picture ? sprite : null,
    prompt_id: isText(raw.prompt_id) ? raw.prompt_id : null,
  };
}
