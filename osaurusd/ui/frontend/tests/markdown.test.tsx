import type { ComponentChild, VNode } from "preact";
import { lexer } from "marked";
import { expect, test } from "vitest";

import { safeLink } from "../src/links";
import { decodeEntities, renderTokens } from "../src/markdown";

const HOSTILE = [
  "<script>alert(1)</script>",
  "text <img src=x onerror=alert(1)> text",
  '<a href="javascript:alert(1)">x</a>',
  "![x](https://example.com/pixel.png)",
  "[x](javascript:alert(1))",
  "[x](JaVaScRiPt:alert(1))",
  "[x](data:text/html,<script>alert(1)</script>)",
  "[x]: javascript:alert(1)\n\n[x]",
  "<javascript:alert(1)>",
  "<svg/onload=alert(1)>",
  '```"><script>alert(1)</script>\ncode\n```',
];
const ELEMENTS = "p ul ol li strong em del code br a blockquote hr div table thead tbody tr th td input h3 h4 h5 h6";
const ALLOWED = new Set(ELEMENTS.split(" "));

/** Yield the elements of a tree; components such as code blocks are not entered. */
function* elements(child: ComponentChild): Generator<VNode<Record<string, unknown>>> {
  if (Array.isArray(child)) for (const each of child) yield* elements(each as ComponentChild);
  else if (child && typeof child === "object" && "props" in child) {
    const node = child as VNode<Record<string, unknown>>;
    if (typeof node.type === "string") yield node;
    yield* elements(node.props.children as ComponentChild);
  }
}

function text(child: ComponentChild): string {
  if (Array.isArray(child)) return child.map((each) => text(each as ComponentChild)).join("");
  if (child && typeof child === "object" && "props" in child) return text(child.props.children as ComponentChild);
  return typeof child === "string" || typeof child === "number" ? String(child) : "";
}

const render = (markdown: string) => renderTokens(lexer(markdown));

test.each(HOSTILE)("only harmless elements and links come from %j", (markdown) => {
  for (const { type, props } of elements(render(markdown))) {
    expect(ALLOWED).toContain(type);
    expect(Object.keys(props).filter((name) => /^on|innerhtml|^style$|^src$/i.test(name))).toEqual([]);
    if (type === "a") expect(String(props.href)).toMatch(/^(https?|mailto):/);
  }
});

test("markup stays visible as text", () => {
  expect(text(render("a <b>bold</b> <script>x</script>"))).toBe("a <b>bold</b> <script>x</script>");
});

test("Markdown becomes elements", () => {
  const names = [...elements(render("# A\n\n- *b* **c**\n\n1. d\n\n|x|\n|-|\n|y|\n\n> q"))].map(({ type }) => type);
  expect(names).toEqual(expect.arrayContaining(["h3", "ul", "em", "strong", "ol", "table", "td", "blockquote"]));
});

test("character references in text are decoded, those in code are not", () => {
  expect(text(render("1 &lt; 2 &amp; `&lt;`"))).toBe("1 < 2 & &lt;");
  expect(decodeEntities("&#65;&#x42;&unknown;&#0;&#9999999;")).toBe("AB&unknown;&#0;&#9999999;");
});

test("relative addresses and other protocols are not links", () => {
  const addresses = [
    "/v0/x",
    "x",
    "//host/x",
    "file:///etc",
    "vbscript:x",
    "blob:x",
    " javascript:x",
    "java\nscript:x",
  ];
  expect(addresses.map(safeLink)).toEqual(addresses.map(() => null));
  expect(safeLink("https://example.com/?a=b")).toBe("https://example.com/?a=b");
});
