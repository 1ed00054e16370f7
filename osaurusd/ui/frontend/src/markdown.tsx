/** Markdown as elements. Nothing is ever parsed as HTML: markup in the text is shown as text. */

import { lexer, type Token, type Tokens } from "marked";
import { Component, type ComponentChild, type VNode } from "preact";

import { CodeBlock } from "./components/code_block";
import { safeLink } from "./links";

const ENTITIES: Record<string, string> = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: "\u00a0",
  hellip: "…",
  mdash: "—",
  ndash: "–",
};

const MAX_CODE_POINT = 0x10ffff;

/** Render Markdown. While an answer streams, only its last block is rendered again. */
export function Markdown({ text }: { text: string }) {
  return (
    <div class="markdown">
      {lexer(text).map((token, index) => (
        <Block key={index} token={token} />
      ))}
    </div>
  );
}

interface BlockProps {
  token: Token;
}

class Block extends Component<BlockProps> {
  // Tokens are new objects at each pass; their source text says whether a block changed.
  override shouldComponentUpdate(next: BlockProps): boolean {
    return next.token.raw !== this.props.token.raw || next.token.type !== this.props.token.type;
  }

  override render(): ComponentChild {
    return renderBlock(this.props.token);
  }
}

type Renderer = (token: Token) => ComponentChild;

const BLOCKS: Record<string, Renderer> = {
  heading: (token) => heading(token as Tokens.Heading),
  paragraph: (token) => <p>{inline(token)}</p>,
  text: (token) => inline(token),
  code: (token) => <CodeBlock code={(token as Tokens.Code).text} language={(token as Tokens.Code).lang ?? ""} />,
  blockquote: (token) => <blockquote>{renderTokens((token as Tokens.Blockquote).tokens)}</blockquote>,
  list: (token) => list(token as Tokens.List),
  table: (token) => table(token as Tokens.Table),
  hr: () => <hr />,
  html: (token) => <p>{token.raw.trimEnd()}</p>,
  checkbox: (token) => (
    <input type="checkbox" checked={(token as Tokens.Checkbox).checked} disabled aria-label="Task" />
  ),
  space: () => null,
  def: () => null,
};

const SPANS: Record<string, Renderer> = {
  strong: (token) => <strong>{inline(token)}</strong>,
  em: (token) => <em>{inline(token)}</em>,
  del: (token) => <del>{inline(token)}</del>,
  codespan: (token) => <code>{(token as Tokens.Codespan).text}</code>,
  br: () => <br />,
  link: (token) => link(token as Tokens.Link),
  // Images would tell another host that the answer was read.
  image: (token) => link(token as Tokens.Image),
  escape: (token) => (token as Tokens.Escape).text,
  html: (token) => token.raw,
  text: (token) => decodeEntities((token as Tokens.Text).text),
};

function renderBlock(token: Token): ComponentChild {
  return (BLOCKS[token.type] ?? (() => token.raw))(token);
}

/** Return the elements of block tokens. */
export function renderTokens(tokens: Token[]): ComponentChild[] {
  return tokens.map(renderBlock);
}

function inline(token: Token): ComponentChild {
  const children = "tokens" in token ? token.tokens : undefined;
  if (!children) return decodeEntities("text" in token ? String(token.text) : token.raw);
  return children.map((child) => (SPANS[child.type] ?? (() => child.raw))(child));
}

function heading(token: Tokens.Heading): VNode {
  // The page has the headings of the first two levels.
  const Name = `h${Math.min(6, token.depth + 2)}` as "h3";
  return <Name>{inline(token)}</Name>;
}

function link(token: Tokens.Link | Tokens.Image): ComponentChild {
  const address = safeLink(token.href);
  const label = token.type === "image" ? token.text || token.href : inline(token);
  if (!address) return token.type === "image" ? token.raw : label;
  return (
    <a href={address} target="_blank" rel="noopener noreferrer">
      {label}
    </a>
  );
}

function list(token: Tokens.List): VNode {
  const items = token.items.map((item, index) => (
    <li key={index} class={item.task ? "task" : undefined}>
      {renderTokens(item.tokens)}
    </li>
  ));
  return token.ordered ? <ol start={Number(token.start) || 1}>{items}</ol> : <ul>{items}</ul>;
}

function table(token: Tokens.Table): VNode {
  return (
    <div class="scroll" role="region" aria-label="Table" tabIndex={0}>
      <table>
        <thead>
          <tr>
            {token.header.map((cell, index) => (
              <th key={index}>{inline(cell as unknown as Token)}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {token.rows.map((row, number) => (
            <tr key={number}>
              {row.map((cell, index) => (
                <td key={index}>{inline(cell as unknown as Token)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Replace character references, which the lexer leaves in text. */
export function decodeEntities(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,6}));/gi, (whole, decimal, hex, name) => {
    if (name) return ENTITIES[name as string] ?? whole;
    const code = decimal ? Number(decimal) : parseInt(hex as string, 16);
    return code > 0 && code <= MAX_CODE_POINT ? String.fromCodePoint(code) : whole;
  });
}
