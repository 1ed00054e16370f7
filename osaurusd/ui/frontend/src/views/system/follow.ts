import { useEffect, useState } from "preact/hooks";

import { errorText, readLines, request } from "../../api";

const MAX_LINES = 1000;
const RETRY_MS = 3000;

export interface Followed<T> {
  lines: { number: number; value: T }[];
  error: string | null;
}

/** Follow a stream of JSON lines while the view is open, and begin again when it ends. */
export function useLines<T>(path: string): Followed<T> {
  const [followed, setFollowed] = useState<Followed<T>>({ lines: [], error: null });
  useEffect(() => {
    const controller = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const run = async () => {
      try {
        await readAll<T>(path, controller.signal, (lines) => setFollowed({ lines, error: null }));
      } catch (error) {
        if (controller.signal.aborted) return;
        setFollowed((current) => ({ ...current, error: errorText(error) }));
      }
      if (!controller.signal.aborted) timer = setTimeout(() => void run(), RETRY_MS);
    };
    void run();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [path]);
  return followed;
}

/** Read lines, and show them once per frame: a log can start with thousands. */
async function readAll<T>(
  path: string,
  signal: AbortSignal,
  show: (lines: Followed<T>["lines"]) => void,
): Promise<void> {
  const lines: Followed<T>["lines"] = [];
  let frame = 0;
  let number = 0;
  const draw = () => {
    frame = 0;
    show([...lines]);
  };
  try {
    for await (const value of readLines<T>(await request(path, { signal }))) {
      lines.push({ number: (number += 1), value });
      if (lines.length > MAX_LINES) lines.shift();
      frame ||= requestAnimationFrame(draw);
    }
  } finally {
    cancelAnimationFrame(frame);
    if (!signal.aborted) draw();
  }
}
