import { outcome } from "../manage";

/** What the last action led to. The region exists before its text, so that screen readers announce it. */
export function Outcome() {
  const current = outcome.value;
  return (
    <div class="outcome" role="status">
      {current?.text && (
        <div class={current.failed ? "notice error row" : "notice row"}>
          <span class="grow">{current.text}</span>
          <button type="button" class="quiet compact" onClick={() => (outcome.value = null)}>
            Dismiss
          </button>
        </div>
      )}
    </div>
  );
}
