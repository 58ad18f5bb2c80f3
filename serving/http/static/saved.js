// Answers as files: JSON, and the CSV of `dermalyze predict --format csv`.

const LISTED = ["prediction_set", "quality"];
const OPTIONAL = [
  "prediction_set", "set_size", "set_level", "decision", "decision_reason",
  "malignant_probability", "referral", "referral_level", "referral_specificity", "referral_reason",
  "scope_score", "quality", "spread",
];

/** Return the text of a JSON file: one object a photograph, without its map. */
export function asJson(results) {
  const rows = results.map(({ name, answer, error }) => {
    if (error) return { image: name, error };
    const { saliency, ...rest } = answer;
    return { image: name, ...rest };
  });
  return `${JSON.stringify(rows, null, 2)}\n`;
}

/** Return the text of a CSV file: one row a photograph. */
export function asCsv(results, classNames, disclaimer) {
  const more = OPTIONAL.filter((key) => results.some(({ answer }) => answer && key in answer));
  const header = [
    "image", "predicted_class", "predicted_class_description", "confidence",
    ...classNames.map((name) => `prob_${name}`), "error", "disclaimer", ...more,
  ];
  const rows = results.map(({ name, answer, error }) => {
    if (error) {
      const empty = Array(3 + classNames.length).fill("");
      return [name, ...empty, error, disclaimer, ...more.map(() => "")];
    }
    return [
      name, answer.predicted_class, answer.predicted_class_description, answer.confidence,
      ...classNames.map((key) => answer.probabilities[key]), "", answer.disclaimer,
      ...more.map((key) => (LISTED.includes(key) ? (answer[key] || []).join("; ") : answer[key])),
    ];
  });
  return [header, ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

function cell(value) {
  let text = String(value ?? "");
  // A spreadsheet would run a file name that begins like a formula (serving/spreadsheet.py).
  if (typeof value === "string" && /^'*[=+\-@＝＋－＠\t\r\n]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Hand a text to the person as a file. */
export function save(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
