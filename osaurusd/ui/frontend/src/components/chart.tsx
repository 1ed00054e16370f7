import * as scale from "../chart_scale";

export interface Series {
  label: string;
  values: number[];
}

interface ChartProps {
  title: string;
  current: string;
  times: number[];
  /** The end of the chart, in Unix seconds. */
  now: number;
  series: Series[];
  /** The top of the chart, unless a value is larger. */
  minTop: number;
  /** Whether `minTop` is a limit that the chart shows as its top. */
  exactTop?: boolean;
  format: (value: number) => string;
  interval: number;
}

const WIDTH = 600;
const HEIGHT = 100;

/** A chart of the last hour. Gaps in the data are gaps in the lines. */
export function Chart({ title, current, times, now, series, minTop, exactTop, format, interval }: ChartProps) {
  const values = series.flatMap((each) => each.values);
  const largest = Math.max(0, ...values);
  const top = exactTop && largest <= minTop ? minTop : scale.niceTop(Math.max(largest, minTop));
  const description = `${title} in the last hour: now ${current}, at most ${format(largest)}`;
  return (
    <figure class="chart card">
      <figcaption>
        <span>{title}</span>
        <strong>{current}</strong>
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={description}>
        {[0, 0.5, 1].map((share) => (
          <line key={share} class="grid" x1={0} x2={WIDTH} y1={share * HEIGHT} y2={share * HEIGHT} />
        ))}
        {series.map(({ label, values: column }, index) => {
          const runs = scale.runs(times, column, { now, top, interval, width: WIDTH, height: HEIGHT });
          return (
            <g key={label}>
              {index === 0 && runs.map((run, number) => <path key={number} class="area" d={scale.area(run, HEIGHT)} />)}
              <path class={index === 0 ? "line" : "line second"} d={runs.map(scale.line).join("")} />
            </g>
          );
        })}
      </svg>
      <div class="axis" aria-hidden="true">
        <span>1 h ago</span>
        <span>top: {format(top)}</span>
        <span>now</span>
      </div>
    </figure>
  );
}
