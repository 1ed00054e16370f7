/** Coordinates of charts. */

export const SPAN_SECONDS = 3600;
const GAP_INTERVALS = 3;

export type Point = readonly [x: number, y: number];

interface Frame {
  now: number;
  top: number;
  interval: number;
  width: number;
  height: number;
}

/** Return the smallest of 1, 2, 5, 10, 20 … that is not below the value. */
export function niceTop(value: number): number {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 5].find((step) => step * power >= value) ?? 10) * power;
}

/** Split a column into runs of points without gaps in time. */
export function runs(times: number[], values: number[], frame: Frame): Point[][] {
  const result: Point[][] = [];
  let previous = -Infinity;
  times.forEach((time, index) => {
    const value = values[index];
    if (value === undefined || time < frame.now - SPAN_SECONDS) return;
    if (time - previous > GAP_INTERVALS * frame.interval) result.push([]);
    const x = frame.width * (1 - (frame.now - time) / SPAN_SECONDS);
    result.at(-1)?.push([round(Math.min(x, frame.width)), round(frame.height * (1 - value / frame.top))]);
    previous = time;
  });
  return result;
}

export function line(run: Point[]): string {
  return run.map(([x, y], index) => `${index ? "L" : "M"}${x} ${y}`).join("");
}

/** Return the area between a run and the bottom. */
export function area(run: Point[], bottom: number): string {
  const first = run[0];
  const last = run.at(-1);
  return first && last ? `${line(run)}L${last[0]} ${bottom}L${first[0]} ${bottom}Z` : "";
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
