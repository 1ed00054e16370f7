import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";

const NEAR_PIXELS = 40;

interface LogListProps {
  label: string;
  count: number;
  children: ComponentChildren;
}

/** A list that shows its end while the reader has not scrolled up. */
export function LogList({ label, count, children }: LogListProps) {
  const list = useRef<HTMLUListElement>(null);
  const atEnd = useRef(true);
  useLayoutEffect(() => {
    if (list.current && atEnd.current) list.current.scrollTop = list.current.scrollHeight;
  }, [count, children]);
  return (
    <ul
      ref={list}
      class="log"
      tabIndex={0}
      aria-label={label}
      onScroll={({ currentTarget: { scrollTop, scrollHeight, clientHeight } }) => {
        atEnd.current = scrollHeight - scrollTop - clientHeight < NEAR_PIXELS;
      }}
    >
      {children}
    </ul>
  );
}
