// Round numbers for an axis.

/** Round values that span `low` to `high`, about `wanted` of them; the ends may lie beyond. */
export function ticks(low, high, wanted) {
  if (!low && !high) return [0, 1];
  const span = high - low || Math.abs(high);
  const rough = span / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const last = Math.ceil(high / step - 1e-9);
  const first = Math.min(last - 1, Math.floor(low / step + 1e-9));
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Every how many of `count` places one may be named, when names are `wide` pixels and places `pitch` apart. */
export function stride(count, pitch, wide) {
  const least = Math.ceil(wide / pitch);
  for (let power = 1; ; power *= 10) {
    for (const factor of [1, 2, 5]) {
      if (factor * power >= least || factor * power >= count) return factor * power;
    }
  }
}
