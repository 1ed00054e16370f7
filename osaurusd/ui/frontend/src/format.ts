/** Numbers and times as people read them. */

const UNITS = ["bytes", "KB", "MB", "GB", "TB"];

/** Format a number of bytes with decimal units, as macOS does: "1.9 GB". */
export function bytes(count: number): string {
  let value = count;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** Format a count with separators: "131,072". */
export function integer(count: number): string {
  return Math.round(count)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, ",");
}

/** Format a large count briefly: "128k", "1.5M". Powers of two are those of context lengths. */
export function compact(count: number): string {
  if (count >= 1024 && count % 1024 === 0 && count < 1024 * 1024) return `${count / 1024}k`;
  if (count < 1000) return String(Math.round(count));
  const [value, unit] = count < 1e6 ? [count / 1e3, "k"] : count < 1e9 ? [count / 1e6, "M"] : [count / 1e9, "B"];
  return `${value >= 99.95 ? value.toFixed(0) : trimZero(value.toFixed(1))}${unit}`;
}

/** Format tokens per second: "42.5 tok/s". */
export function speed(tokensPerSecond: number): string {
  return `${tokensPerSecond >= 99.95 ? tokensPerSecond.toFixed(0) : tokensPerSecond.toFixed(1)} tok/s`;
}

/** Format a span in its two largest units: "45 s", "3 min", "2 h 5 min", "3 d 4 h". */
export function duration(seconds: number): string {
  const total = Math.max(0, Math.round(seconds));
  if (total < 60) return `${total} s`;
  const minutes = Math.floor(total / 60);
  if (minutes < 10) return pair(minutes, "min", total % 60, "s");
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return pair(hours, "h", minutes % 60, "min");
  return pair(Math.floor(hours / 24), "d", hours % 24, "h");
}

/** Format a short span with its fraction: "0.35 s", "850 ms", "12.4 s". */
export function latency(seconds: number): string {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 99.95 ? `${seconds.toFixed(1)} s` : duration(seconds);
}

export function percent(share: number): string {
  const value = Math.min(1, Math.max(0, share)) * 100;
  return `${value > 0 && value < 10 ? trimZero(value.toFixed(1)) : Math.round(value)} %`;
}

/** Format a Unix time as a time of day, with the date unless it is today. */
export function clock(unixSeconds: number, now = Date.now()): string {
  const date = new Date(unixSeconds * 1000);
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const sameDay = date.toDateString() === new Date(now).toDateString();
  return sameDay ? time : `${date.toLocaleDateString([], { month: "short", day: "numeric" })} ${time}`;
}

export function plural(count: number, noun: string): string {
  return `${integer(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function pair(large: number, largeUnit: string, small: number, smallUnit: string): string {
  return small ? `${large} ${largeUnit} ${small} ${smallUnit}` : `${large} ${largeUnit}`;
}

function trimZero(text: string): string {
  return text.replace(/\.0$/, "");
}
