import { useEffect, useState } from "preact/hooks";

import { errorText, getJson } from "../../api";

interface Check {
  name: string;
  verdict: "ok" | "warning" | "failure";
  detail: string;
  fix: string | null;
}

const VERDICTS = {
  ok: { text: "OK", style: "muted" },
  warning: { text: "Warning", style: "warning-text" },
  failure: { text: "Failure", style: "danger-text" },
};

export function DoctorView() {
  const [checks, setChecks] = useState<Check[]>([]);
  const [status, setStatus] = useState("");
  const run = async () => {
    setStatus("Checking …");
    try {
      const found = (await getJson<{ checks: Check[] }>("/manage/doctor")).checks;
      setChecks(found);
      const problems = found.filter((check) => check.verdict !== "ok").length;
      setStatus(
        problems ? `Checks with problems: ${problems} of ${found.length}.` : `All ${found.length} checks pass.`,
      );
    } catch (error) {
      setStatus(errorText(error));
    }
  };
  useEffect(() => void run(), []);
  return (
    <section class="section" aria-label="Doctor">
      <div class="row">
        <span class="grow" role="status">
          {status}
        </span>
        <button type="button" onClick={() => void run()} disabled={status === "Checking …"}>
          Check again
        </button>
      </div>
      <ul class="residents">
        {checks.map((check) => (
          <li key={check.name} class="card">
            <div class="section-head">
              <h2>{check.name}</h2>
              <span class={VERDICTS[check.verdict].style}>{VERDICTS[check.verdict].text}</span>
            </div>
            <p class="muted">{check.detail}</p>
            {check.fix && <p>{check.fix}</p>}
          </li>
        ))}
      </ul>
    </section>
  );
}
