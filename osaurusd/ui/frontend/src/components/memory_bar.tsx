import { bytes } from "../format";
import { isResident, segments } from "../memory";
import type { Memory, Worker } from "../wire";

const HUES = 6;

export function hueClass(index: number): string {
  return `hue-${index % HUES}`;
}

/** What is reserved for each model within the memory budget: its weights, and what its requests need. */
export function MemoryBar({ workers, memory }: { workers: Worker[]; memory: Memory }) {
  const resident = workers.filter(isResident);
  const used = resident.map((worker) => `${worker.model} ${bytes(worker.memory_bytes)}`).join(", ");
  return (
    <div class="stack">
      <svg
        class="memory-bar"
        viewBox="0 0 1000 24"
        preserveAspectRatio="none"
        role="img"
        aria-label={`Memory budget ${bytes(memory.budget_bytes)}: ${used || "no model"}`}
      >
        {segments(workers, memory).map(({ model, start, width }, index) => (
          <rect key={model} class={hueClass(index)} x={start * 1000} width={width * 1000} height={24} />
        ))}
      </svg>
      <ul class="legend">
        {resident.map((worker, index) => (
          <li key={worker.model} class={hueClass(index)}>
            <span class="swatch" />
            {worker.model} <span class="muted">{bytes(worker.memory_bytes)}</span>
          </li>
        ))}
        <li>
          <span class="swatch" />
          Free <span class="muted">{bytes(Math.max(0, memory.budget_bytes - memory.used_bytes))}</span>
        </li>
      </ul>
    </div>
  );
}
