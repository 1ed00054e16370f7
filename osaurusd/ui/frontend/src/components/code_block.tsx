import { CopyButton } from "./copy_button";

/** Code with its language and a button that copies it. Long lines scroll within the block. */
export function CodeBlock({ code, language }: { code: string; language: string }) {
  const name = language.split(/\s/)[0] ?? "";
  return (
    <div class="code">
      <div class="code-head">
        <span>{name || "text"}</span>
        <CopyButton text={code} label="Copy code" />
      </div>
      <pre tabIndex={0} aria-label={name ? `Code in ${name}` : "Code"}>
        <code>{code}</code>
      </pre>
    </div>
  );
}
