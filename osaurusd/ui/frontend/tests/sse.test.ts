import { expect, test } from "vitest";

import { EventParser } from "../src/sse";

function parse(...pieces: string[]) {
  const parser = new EventParser();
  return pieces.flatMap((piece) => parser.push(piece)).map(({ event, data }) => [event, data]);
}

test("events are complete at an empty line", () => {
  expect(parse("event: a\ndata: 1\n\ndata: 2\n\ndata: 3\n")).toEqual([
    ["a", "1"],
    ["message", "2"],
  ]);
});

test("pieces may end anywhere", () => {
  const text = "event: snapshot\r\ndata: {}\r\n\r\n: keep-alive\n\ndata: x\ndata: y\n\n";
  expect(parse(...text)).toEqual([
    ["snapshot", "{}"],
    ["message", "x\ny"],
  ]);
});

test("comments and events without data are skipped", () => {
  expect(parse(": hello\n\nevent: empty\n\ndata\n\n")).toEqual([["message", ""]]);
});
