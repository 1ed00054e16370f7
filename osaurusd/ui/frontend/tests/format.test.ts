import { expect, test } from "vitest";

import { bytes, compact, duration, integer, latency, percent, plural, speed } from "../src/format";

test("bytes", () => {
  expect([0, 999, 1000, 999_950, 1_824_000_000, 51_539_607_552, 123_456_789_000].map(bytes)).toEqual([
    "0 bytes",
    "999 bytes",
    "1.0 KB",
    "1.0 MB",
    "1.8 GB",
    "51.5 GB",
    "123 GB",
  ]);
});

test("counts", () => {
  expect([0, 999, 131072, 1234567].map(integer)).toEqual(["0", "999", "131,072", "1,234,567"]);
  expect([512, 8192, 131072, 32768, 135e6, 3.21e9, 117e9].map(compact)).toEqual([
    "512",
    "8k",
    "128k",
    "32k",
    "135M",
    "3.2B",
    "117B",
  ]);
  expect([plural(1, "model"), plural(2, "model")]).toEqual(["1 model", "2 models"]);
});

test("times", () => {
  expect([0, 59.4, 60, 114, 840, 9000, 90000].map(duration)).toEqual([
    "0 s",
    "59 s",
    "1 min",
    "1 min 54 s",
    "14 min",
    "2 h 30 min",
    "1 d 1 h",
  ]);
  expect([0.0004, 0.21, 0.9996, 12.34, 200].map(latency)).toEqual(["0 ms", "210 ms", "1.0 s", "12.3 s", "3 min 20 s"]);
});

test("rates and shares", () => {
  expect([speed(41.23), speed(1234.5)]).toEqual(["41.2 tok/s", "1235 tok/s"]);
  expect([0, 0.004, 0.4, 1, 1.2].map(percent)).toEqual(["0 %", "0.4 %", "40 %", "100 %", "100 %"]);
});
