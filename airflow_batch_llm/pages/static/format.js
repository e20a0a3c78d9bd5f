/** Numbers, times and amounts as people read them: each with its unit. */

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const TENTHS = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
const COMPACT = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const SECONDS = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat(undefined, {
  month: "short",
  day: "numeric",
  hour: "numeric",
  minute: "2-digit",
});
const NOTHING = "–";
const STEPS = [
  ["d", 86400],
  ["h", 3600],
  ["min", 60],
  ["s", 1],
];

export function whole(number) {
  return number == null ? NOTHING : WHOLE.format(number);
}

export function compact(number) {
  return number == null ? NOTHING : Math.abs(number) < 10000 ? WHOLE.format(number) : COMPACT.format(number);
}

/** A number with the word for what it counts: "1 row", "2,000 rows". */
export function counted(number, word, words = `${word}s`) {
  return `${whole(number)} ${number === 1 ? word : words}`;
}

export function rate(number, unit) {
  if (number == null) return NOTHING;
  const figures =
    number > 0 && number < 1 ? new Intl.NumberFormat("en-US", { maximumSignificantDigits: 2 }) : TENTHS;
  return `${number < 100 ? figures.format(number) : compact(number)} ${unit}`;
}

/** A share between 0 and 1. What is not quite nothing or all is not called so. */
export function percent(share) {
  if (share == null) return NOTHING;
  if (share > 0 && share < 0.001) return "<0.1%";
  if (share < 1 && share > 0.999) return ">99.9%";
  return `${TENTHS.format(share * 100)}%`;
}

/** A length of time in its two largest units: "2 h 5 min". */
export function duration(seconds) {
  if (seconds == null) return NOTHING;
  if (seconds < 0.95) return "<1 s";
  let left = Math.round(seconds);
  const parts = [];
  for (const [unit, length] of STEPS) {
    const times = Math.floor(left / length);
    left -= times * length;
    if (times || parts.length) parts.push([times, unit]);
    if (parts.length === 2) break;
  }
  return parts
    .filter(([times]) => times)
    .map(([times, unit]) => `${times} ${unit}`)
    .join(" ");
}

/** How long ago a time was, coarsely. */
export function ago(at, now) {
  const seconds = Math.max(0, now - at);
  if (seconds < 5) return "just now";
  const [unit, length] = STEPS.find(([, each]) => seconds >= each);
  return `${Math.floor(seconds / length)} ${unit} ago`;
}

export function moment(at) {
  return at == null ? NOTHING : MOMENT.format(new Date(at * 1000));
}

/** A time of day, as exactly as a stretch of `span` seconds needs it. */
export function clock(at, span) {
  return (span < 600 ? SECONDS : span < 43200 ? CLOCK : DAY).format(new Date(at * 1000));
}

/** An amount of money. Very small ones keep two digits that say something. */
export function money(amount, currency) {
  if (amount == null) return NOTHING;
  const small = amount !== 0 && Math.abs(amount) < 0.01;
  const digits = small
    ? { maximumSignificantDigits: 2 }
    : { maximumFractionDigits: 2, minimumFractionDigits: 2 };
  return `${new Intl.NumberFormat("en-US", digits).format(amount)} ${currency}`;
}
