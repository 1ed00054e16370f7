import { href, path } from "../../router";
import { ConfigView } from "./config";
import { DoctorView } from "./doctor";
import { EventsView } from "./events";
import { LogsView } from "./logs";

const PARTS = [
  { part: "logs", title: "Logs", View: LogsView },
  { part: "events", title: "Events", View: EventsView },
  { part: "doctor", title: "Doctor", View: DoctorView },
  { part: "config", title: "Configuration", View: ConfigView },
];

export function SystemView() {
  const current = PARTS.find(({ part }) => part === path.value[1]) ?? PARTS[0];
  return (
    <>
      <div class="section-head">
        <h1>System</h1>
        <nav class="tabs" aria-label="System">
          {PARTS.map(({ part, title }) => (
            <a key={part} href={href("system", part)} aria-current={part === current?.part ? "page" : undefined}>
              {title}
            </a>
          ))}
        </nav>
      </div>
      {current && <current.View />}
    </>
  );
}
