import { useEffect, useState } from "preact/hooks";

import { errorText, getJson, postJson } from "../api";
import { bytes, compact, duration, percent } from "../format";
import { connection } from "../live";
import {
  cancelPull,
  isUnfinished,
  openPulls,
  pulls,
  startPull,
  type FoundModel,
  type Pull,
  type Recommended,
} from "../manage";

const AUTHOR = "mlx-community";
const MAX_RESULTS = 20;

/** Search the hub, see what fits, and download. */
export function GetModels() {
  const [words, setWords] = useState("");
  const [allAuthors, setAllAuthors] = useState(false);
  const [found, setFound] = useState<FoundModel[] | null>(null);
  const [status, setStatus] = useState("");
  const live = connection.value === "live";
  useEffect(() => {
    if (live) void openPulls();
  }, [live]);
  const search = async () => {
    setStatus("Searching …");
    try {
      const models = await postJson<FoundModel[]>("/v0/search", {
        words: words.trim(),
        task: "generate",
        limit: MAX_RESULTS,
        author: allAuthors ? null : AUTHOR,
      });
      setFound(models);
      setStatus(models.length ? "" : "No model matches. Other words may help, or the full name ORG/REPO.");
    } catch (error) {
      setStatus(errorText(error));
    }
  };
  const isRepo = /^[^\s/]+\/[^\s/]+$/.test(words.trim());
  return (
    <section class="section" aria-labelledby="get-title">
      <h2 id="get-title">Get models</h2>
      <form
        class="row"
        onSubmit={(event) => {
          event.preventDefault();
          if (isRepo) void startPull(words.trim());
          else void search();
        }}
      >
        <input
          class="grow"
          type="search"
          aria-label="Words to search for, or a repository"
          placeholder="Words, such as qwen 4b, or a repository: ORG/REPO"
          value={words}
          onInput={(event) => setWords(event.currentTarget.value)}
        />
        <label class="row small">
          <input
            type="checkbox"
            checked={allAuthors}
            onChange={(event) => setAllAuthors(event.currentTarget.checked)}
          />
          All authors
        </label>
        <button type="submit" class="primary" disabled={!words.trim()}>
          {isRepo ? "Download" : "Search"}
        </button>
      </form>
      <p role="status" class={status ? "muted" : "offscreen"}>
        {status}
      </p>
      <Pulls />
      {found ? <Results models={found} /> : <Recommendations />}
    </section>
  );
}

function Pulls() {
  return (
    <ul class="residents" aria-label="Downloads">
      {pulls.value
        .filter((pull) => pull.state !== "done" && pull.state !== "cancelled")
        .map((pull) => (
          <PullCard key={pull.id} pull={pull} />
        ))}
    </ul>
  );
}

function PullCard({ pull }: { pull: Pull }) {
  const unfinished = isUnfinished(pull);
  const action = unfinished ? "Cancel" : "Retry";
  return (
    <li class="card stack">
      <div class="row">
        <strong class="grow">{pull.repo}</strong>
        <button
          type="button"
          class="compact"
          aria-label={`${action} ${pull.repo}`}
          onClick={() => void (unfinished ? cancelPull(pull.id) : startPull(pull.repo))}
        >
          {action}
        </button>
      </div>
      {unfinished && <progress max={1} value={share(pull)} aria-label={`Download of ${pull.repo}`} />}
      <p class={pull.error ? "danger-text" : "muted small"}>{pullText(pull)}</p>
    </li>
  );
}

function share(pull: Pull): number {
  const [part, whole] = pull.stage === "verifying" ? [pull.hashed, pull.to_hash] : [pull.done, pull.total];
  return whole ? part / whole : 0;
}

function pullText(pull: Pull): string {
  if (pull.error) return pull.error.message;
  if (pull.state === "queued") return "Waits for another download.";
  if (pull.note) return pull.note;
  if (pull.stage === "verifying") return `Verifies checksums: ${percent(share(pull))}`;
  if (pull.stage === "placing") return "Moves the files into the cache.";
  if (!pull.total) return "Asks the hub for the files.";
  const left = pull.seconds_left === null ? "" : `, ${duration(pull.seconds_left)} left`;
  return `${percent(share(pull))} of ${bytes(pull.total)}, ${bytes(pull.bytes_per_second)}/s${left}`;
}

function Results({ models }: { models: FoundModel[] }) {
  return (
    <ul class="residents" aria-label="Models found">
      {models.map((model) => (
        <Offer
          key={model.repo}
          repo={model.repo}
          size={model.bytes}
          fits={model.fits}
          downloaded={model.state === "available"}
          details={[
            model.parameters ? `${compact(model.parameters)} parameters` : "",
            model.downloads ? `${compact(model.downloads)} downloads` : "",
            model.gated ? "requires an account on the hub" : "",
          ]}
        />
      ))}
    </ul>
  );
}

function Recommendations() {
  const [models, setModels] = useState<Recommended[]>([]);
  useEffect(() => {
    getJson<Recommended[]>("/manage/recommended").then(setModels, () => undefined);
  }, []);
  if (!models.length) return null;
  return (
    <>
      <h3>Recommended</h3>
      <ul class="residents">
        {models.map((model) => (
          <Offer
            key={model.repo}
            repo={model.repo}
            size={model.bytes}
            fits={model.fits}
            downloaded={false}
            details={[model.task, model.description, model.best ? "best of its kind for this machine" : ""]}
          />
        ))}
      </ul>
    </>
  );
}

interface OfferProps {
  repo: string;
  size: number | null;
  fits: boolean | null;
  downloaded: boolean;
  details: string[];
}

function Offer({ repo, size, fits, downloaded, details }: OfferProps) {
  const busy = pulls.value.some((pull) => pull.repo === repo && isUnfinished(pull));
  return (
    <li class="card row">
      <div class="grow">
        <strong>{repo}</strong>
        <div class="muted small">{[size === null ? "" : bytes(size), ...details].filter(Boolean).join(", ")}</div>
      </div>
      {fits !== null && <span class={fits ? "tag" : "tag danger-text"}>{fits ? "fits" : "too large"}</span>}
      <button
        type="button"
        class="compact"
        disabled={busy || downloaded}
        aria-label={`Download ${repo}`}
        onClick={() => void startPull(repo)}
      >
        {downloaded ? "Downloaded" : busy ? "Downloading" : "Download"}
      </button>
    </li>
  );
}
