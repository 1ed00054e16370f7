import { useEffect, useState } from "preact/hooks";

const SHOWN_MS = 1500;

/** A button that copies a text and says so for a moment. */
export function CopyButton({ text, label }: { text: string; label: string }) {
  const [copied, setCopied] = useState<boolean | null>(null);
  useEffect(() => {
    if (copied === null) return;
    const timer = setTimeout(() => setCopied(null), SHOWN_MS);
    return () => clearTimeout(timer);
  }, [copied]);
  return (
    <button type="button" class="quiet copy" aria-label={label} onClick={() => void copy(text).then(setCopied)}>
      {copied === null ? "Copy" : copied ? "Copied" : "Failed"}
    </button>
  );
}

/** Copy a text. Pages on plain HTTP from another machine have no clipboard API, but they can copy a selection. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelection(text);
  }
}

function copySelection(text: string): boolean {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "offscreen";
  document.body.append(area);
  area.select();
  try {
    return document.execCommand("copy");
  } finally {
    area.remove();
  }
}
