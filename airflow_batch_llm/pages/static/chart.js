/** Charts of a batch's life: rows done, and tokens a second. Drawn as SVG, told in words beside. */

import { h, useId, useRef, useState } from "./react.js";
import { clock, compact, counted, duration, moment, rate, whole } from "./format.js";

const WIDTH = 720;
const HEIGHT = 150;
const LEFT = 56;
const BOTTOM = 20;
const TOP = 8;

/** More than there are pixels for. A batch may have worked for a minute and then have waited for a month. */
const MOST_POINTS = 240;

/**
 * Every stretch of time from the first on, those without commits too: `{at, rows, failed, tokens}`, with the rows added
 * up and the tokens by the second; and how long a stretch is.
 */
export function points(timeline, from, until) {
  const { bucket_seconds: bucketStep, buckets } = timeline;
  const step = bucketStep * Math.max(1, Math.ceil((until - from) / bucketStep / MOST_POINTS));
  const first = Math.floor(from / step);
  const last = Math.max(Math.floor(until / step), first);
  const series = Array.from({ length: last - first + 1 }, (_, place) => ({
    at: (first + place) * step,
    rows: 0,
    failed: 0,
    tokens: 0,
  }));
  for (const bucket of buckets) {
    const point = series[Math.min(Math.max(Math.floor(bucket.at / step), first), last) - first];
    point.rows += bucket.rows;
    point.failed += bucket.failed;
    point.tokens += (bucket.prompt_tokens + bucket.completion_tokens) / step;
  }
  for (let place = 1; place < series.length; place += 1) {
    series[place].rows += series[place - 1].rows;
    series[place].failed += series[place - 1].failed;
  }
  return { series, step };
}

/** Seconds: workers hand in their rows every other second, so a shorter bar would be one of them or none. */
const LEAST_BAR = 5;
const LEAST_BARS = 12;

/** The same with several points as one, so that each says something of the speed. */
function grouped(series, step) {
  const size = Math.min(Math.ceil(LEAST_BAR / step), Math.max(1, Math.floor(series.length / LEAST_BARS)));
  const groups = [];
  for (let place = 0; place < series.length; place += size) {
    const some = series.slice(place, place + size);
    const tokens = some.reduce((sum, point) => sum + point.tokens, 0) / some.length;
    groups.push({ ...some.at(-1), at: some[0].at, tokens });
  }
  return { bars: groups, barStep: step * size };
}

/** `known` are the rows that were done before the first commit, `done` those that are now. */
export function ProgressCharts({ timeline, total, known, done, from, until, ended }) {
  const [looked, look] = useState(null);
  const { series, step } = points(timeline, from, until);
  for (const point of series) point.rows += known;
  // Rows that equal others get their answer with the target, and are no commit.
  if (ended) series.at(-1).rows = Math.max(series.at(-1).rows, done);
  const { bars, barStep } = grouped(series, step);
  const most = bars.reduce((highest, bar) => Math.max(highest, bar.tokens), 0);
  const at = looked && looked.series.findLast((point) => point.at <= looked.at);
  const shared = { looked: looked?.at ?? null, until };
  return h(
    "div",
    { className: "blm-charts" },
    h(Chart, {
      ...shared,
      series,
      step,
      look: (moment) => look(moment === null ? null : { at: moment, series: bars }),
      title: "Rows done",
      value: (point) => point.rows,
      most: total || 1,
      unit: "rows",
      area: { from: known },
      summary: `${whole(series.at(-1).rows)} of ${counted(total, "row")} done ${ended ? "in" : "after"} ${duration(until - from)}.`,
    }),
    h(Chart, {
      ...shared,
      series: bars,
      step: barStep,
      look: (moment) => look(moment === null ? null : { at: moment, series: bars }),
      title: "Tokens a second",
      value: (point) => point.tokens,
      most: Math.max(1, most),
      unit: "tokens/s",
      summary: `At most ${rate(most, "tokens/s")}, over stretches of ${duration(barStep)}.`,
    }),
    h(
      "p",
      { className: "blm-small blm-muted blm-chart-words", "aria-live": "off" },
      at
        ? `${moment(at.at)}: ${counted(at.rows, "row")} done, ${at.failed ? `${whole(at.failed)} of them failed, ` : ""}${rate(at.tokens, "tokens/s")}`
        : `Each bar is ${duration(barStep)}. Point at a chart for its numbers.`,
    ),
  );
}

function Chart({ title, series, value, most, unit, area = null, summary, looked, look, step, until }) {
  const id = useId();
  const frame = useRef(null);
  const width = WIDTH - LEFT;
  const x = (place) => LEFT + (width * place) / series.length;
  const y = (amount) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1, amount / most));
  const find = (event) => {
    const box = frame.current.getBoundingClientRect();
    const place = Math.floor(
      (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (width / series.length),
    );
    look(place >= 0 && place < series.length ? series[place].at : null);
  };
  const from = series[0].at;
  const end = Math.max(until, series.at(-1).at + step);
  const marked = looked === null ? -1 : series.findLastIndex((point) => point.at <= looked);
  return h(
    "figure",
    { className: "blm-chart" },
    h("figcaption", null, title),
    h(
      "svg",
      {
        ref: frame,
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        role: "img",
        "aria-labelledby": id,
        onPointerMove: find,
        onPointerLeave: () => look(null),
      },
      h("title", { id }, `${title}. ${summary}`),
      ...[0, 0.5, 1].map((share) =>
        h("line", {
          key: share,
          className: "blm-grid",
          x1: LEFT,
          x2: WIDTH,
          y1: y(most * share),
          y2: y(most * share),
        }),
      ),
      ...[0, 1].map((share) =>
        h(
          "text",
          {
            key: share,
            className: "blm-tick",
            x: LEFT - 6,
            y: y(most * share) + (share ? 9 : 0),
            textAnchor: "end",
          },
          compact(most * share),
        ),
      ),
      h("text", { className: "blm-tick", x: LEFT - 6, y: y(most / 2) + 4, textAnchor: "end" }, unit),
      area ? h(Area, { series, value, x, y, from: area.from }) : h(Bars, { series, value, x, y }),
      marked >= 0 &&
        h("rect", {
          className: "blm-looked",
          x: x(marked),
          y: TOP,
          width: width / series.length,
          height: HEIGHT - TOP - BOTTOM,
        }),
      h("text", { className: "blm-tick", x: LEFT, y: HEIGHT - 4 }, clock(from, end - from)),
      series.length > 4 &&
        h(
          "text",
          { className: "blm-tick", x: LEFT + width / 2, y: HEIGHT - 4, textAnchor: "middle" },
          clock((from + end) / 2, end - from),
        ),
      h(
        "text",
        { className: "blm-tick", x: WIDTH, y: HEIGHT - 4, textAnchor: "end" },
        clock(end, end - from),
      ),
    ),
  );
}

function Area({ series, value, x, y, from }) {
  const line = series
    .map((point, place) => `L${x(place + 1).toFixed(1)},${y(value(point)).toFixed(1)}`)
    .join("");
  return h(
    "g",
    null,
    h("path", {
      className: "blm-area",
      d: `M${x(0)},${y(0)}L${x(0)},${y(from)}${line}L${x(series.length)},${y(0)}Z`,
    }),
    h("path", { className: "blm-line", d: `M${x(0)},${y(from)}${line}` }),
  );
}

function Bars({ series, value, x, y }) {
  const width = Math.max(0.8, x(1) - x(0) - (series.length < 60 ? 2 : 0.5));
  return h(
    "g",
    { className: "blm-bars" },
    ...series.map(
      (point, place) =>
        value(point) > 0 &&
        h("rect", {
          key: point.at,
          x: x(place),
          width,
          y: y(value(point)),
          height: Math.max(0.5, y(0) - y(value(point))),
        }),
    ),
  );
}
