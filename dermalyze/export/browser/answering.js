// From what the network gives to an answer, as `serving/base_predictor.py` and `quality.py` do.

const EXACT = 60; // decimal digits; enough to see whether a number lies just between two
// As `serving/metadata.py` has them.
const MISSING = [
  "", "#div/0!", "#n/a", "#n/a n/a", "#na", "#name?", "#null!", "#num!", "#ref!", "#value!",
  "(null)", "-", "--", "-1.#ind", "-1.#qnan", "-nan", ".", "1.#ind", "1.#qnan", "<na>", "?", "\\n",
  "missing", "n.a", "n.a.", "n/a", "na", "nan", "nat", "nil", "none", "not available", "not known",
  "not recorded", "not reported", "not specified", "null", "undefined", "unk", "unknown", "\u2013",
  "\u2014",
];
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** Encode age, sex and site: Float32Array of the width that the spec asks for. */
export function encode(metadata, fields) {
  const { sexes, localizations } = fields;
  const row = new Float32Array(2 + sexes.length + localizations.length);
  if (!metadata) return row;
  const age = ageOf(metadata.age);
  if (age !== null && fields.age_mean === null) refuse("age");
  if (age !== null) row.set([(age - fields.age_mean) / fields.age_std, 1]);
  let start = 2;
  for (const [name, words] of [["sex", sexes], ["localization", localizations]]) {
    const word = wordOf(name, metadata[name]);
    if (word !== null) {
      if (!words.length) refuse(name);
      const at = words.indexOf(word);
      if (at < 0) {
        throw new Error(
          `the ${name} is unknown to this model, expected one of ${listed(words)}, or unknown`,
        );
      }
      row[start + at] = 1;
    }
    start += words.length;
  }
  return row;
}

/** Name the first 30 words. */
function listed(words) {
  const more = words.length > 30 ? ` and ${words.length - 30} more` : "";
  return words.slice(0, 30).join(", ") + more;
}

function refuse(name) {
  throw new Error(`this model does not take the ${name}; leave it out`);
}

function ageOf(value = null) {
  let age = value;
  if (typeof value === "string") {
    const text = value.trim();
    if (MISSING.includes(text.toLowerCase())) return null;
    age = NUMBER.test(text) ? Number(text) : undefined; // Number alone takes more than numbers
  }
  if (age === null || Number.isNaN(age)) return null;
  if (typeof age !== "number" || !(age >= 0 && age <= 120)) {
    throw new Error("an age must be a number of years from 0 to 120");
  }
  return age;
}

function wordOf(name, value = null) {
  if (value === null || Number.isNaN(value)) return null;
  if (typeof value !== "string") throw new Error(`the ${name} must be text, got ${typeof value}`);
  const word = value.trim().toLowerCase();
  return MISSING.includes(word) ? null : word;
}

/** Return the answer for one image; what the model lacks is left out. */
export function answerOf(outputs, pixels, size, spec, { level, sensitivity }) {
  const names = spec.taxonomy.names;
  const logits = [...outputs.logits];
  const probs = softmax(logits, spec.temperature);
  const best = probs.indexOf(Math.max(...probs));
  const answer = {
    predicted_class: names[best],
    predicted_class_description: spec.taxonomy.descriptions[best],
    confidence: probs[best],
    probabilities: named(probs, names),
    logits: named(logits, names),
    ...setOf(probs, best, spec, level),
  };
  const more = {};
  if (spec.quality) more.quality = hints(pixels, size, spec);
  if (spec.scope) more.scope_score = outputs.scope_score[0];
  const decision = decide(answer.confidence, more, spec);
  Object.assign(answer, decision);
  Object.assign(answer, referralOf(probs, spec, sensitivity));
  if (spec.scope) answer.scope_score = more.scope_score;
  if (spec.quality) answer.quality = more.quality;
  if (outputs.member_logits) answer.spread = spreadOf(outputs.member_logits, best, spec);
  answer.disclaimer = spec.disclaimer;
  return answer;
}

function softmax(logits, temperature) {
  const scaled = logits.map((value) => value / temperature);
  const largest = Math.max(...scaled);
  const powers = scaled.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((total, value) => total + value, 0);
  return powers.map((value) => value / sum);
}

function named(values, names) {
  return Object.fromEntries(names.map((name, i) => [name, values[i]]));
}

function setOf(probs, best, spec, level) {
  const sets = spec.prediction_sets;
  if (!sets) return {};
  const column = sets.levels.findIndex((known) => known >= level - 1e-9);
  if (column < 0 || level < sets.levels[0] - 1e-9) {
    const [low, high] = [sets.levels[0], sets.levels.at(-1)];
    throw new Error(
      `the level of prediction sets must be from ${low} to ${high}, got ${decimal(level)}`,
    );
  }
  const members = spec.taxonomy.names.filter(
    (_, i) => i === best || probs[i] >= sets.min_probs[i][column],
  );
  const alone = spec.taxonomy.names
    .map((name, i) => [name, sets.num_lesions[i], sets.min_probs[i][column]])
    .filter(([, , lowest]) => lowest === 0)
    .map(([name, count]) => `${name} (${count})`);
  return {
    prediction_set: members,
    set_size: members.length,
    set_level: sets.levels[column],
    ...(alone.length && {
      set_note: `always included (too few calibration lesions): ${alone.join(", ")}`,
    }),
  };
}

/** Say whether to refer the lesion, as `_referral` does. */
function referralOf(probs, spec, sensitivity) {
  const limits = spec.referral;
  if (!limits) return {};
  if (!(sensitivity >= 0.8 - 1e-9 && sensitivity <= 0.99 + 1e-9)) {
    throw new Error(
      `the sensitivity of the referral must be from 0.8 to 0.99, got ${decimal(sensitivity)}`,
    );
  }
  const { names, malignant } = spec.taxonomy;
  const malignancy = probs.reduce(
    (sum, prob, i) => (malignant.includes(names[i]) ? sum + prob : sum),
    0,
  );
  const column = limits.levels.findIndex((known) => known >= sensitivity - 1e-9);
  if (column < 0) {
    return { malignant_probability: malignancy, referral_reason: lacking(limits, sensitivity) };
  }
  const [level, lowest, price] = ["levels", "min_probs", "specificities"].map(
    (name) => limits[name][column],
  );
  const refer = malignancy >= lowest;
  return {
    malignant_probability: malignancy,
    referral: refer,
    referral_level: level,
    referral_specificity: price,
    referral_reason:
      `malignant probability ${percent(malignancy, 2)} is ${refer ? "at or above" : "below"} the `
      + `${percent(lowest, 2)} threshold (at least ${percent(level, 0)} of malignant validation `
      + `lesions are referred, with ${percent(limits.confidence, 0)} confidence, and `
      + `${percent(1 - price, 0)} of benign ones)`,
  };
}

function lacking(limits, sensitivity) {
  const level = Math.ceil(100 * (sensitivity - 1e-9)) / 100;
  const needed = Math.ceil(Math.log(1 - limits.confidence) / Math.log(level) - 1e-9);
  return (
    `no threshold is known to find ${percent(level, 0)} of malignant lesions: it takes ${needed} `
    + `malignant validation lesions and a benign one, there were ${limits.num_malignant} and `
    + `${limits.num_benign}`
  );
}

function decide(confidence, { quality, scope_score: score }, spec) {
  const { abstention, scope } = spec;
  if (!abstention) return {};
  const decided = (decision, reason) => ({ decision, decision_reason: reason });
  if (quality?.length) return decided("out_of_scope", quality.join("; "));
  if (scope && score > scope.max_score) {
    return decided(
      "out_of_scope",
      "the image does not resemble the validation images "
        + `(score ${general(score)}, limit ${general(scope.max_score)})`,
    );
  }
  const risk = percent(abstention.risk, 0);
  if (abstention.min_confidence > 1) {
    return decided(
      "uncertain",
      `no confidence threshold kept validation errors below ${risk}`,
    );
  }
  const below = confidence < abstention.min_confidence;
  return decided(
    below ? "uncertain" : "answer",
    `confidence ${percent(confidence)} is ${below ? "below" : "at or above"} the `
      + `${percent(abstention.min_confidence)} threshold (at most ${risk} errors `
      + `on validation images${spec.referral ? ", on average over all classes" : ""})`,
  );
}

/** Say what is wrong with a photograph: pixels (H x W x 3), and its own width and height. */
function hints(pixels, [photoWidth, photoHeight], spec) {
  const limits = spec.quality;
  const measured = measure(pixels, spec.input_size);
  const said = [];
  if (Math.min(photoWidth, photoHeight) < limits.min_side) {
    said.push(
      `the photograph is too small (${photoWidth} x ${photoHeight} pixels); send one of at least `
        + `${limits.min_side} pixels on its shorter side`,
    );
  }
  if (measured.brightness < limits.min_brightness) {
    said.push("the photograph is too dark; use more light");
  }
  if (measured.brightness > limits.max_brightness) {
    said.push("the photograph is too bright; use less light, and no flash on wet skin");
  }
  if (measured.color < limits.min_color) {
    said.push("the photograph has hardly any color; send one in color");
  }
  if (measured.sharpness < limits.min_sharpness) {
    said.push("the photograph is blurred; hold still and focus on the lesion");
  }
  return said;
}

function measure(pixels, [height, width]) {
  const luma = new Float32Array(height * width); // single precision, as in Python
  const [red, green, blue] = [0.299, 0.587, 0.114].map(Math.fround);
  let [brightness, color, sharpness] = [0, 0, 0];
  for (let i = 0; i < luma.length; i += 1) {
    const [r, g, b] = [pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2]];
    luma[i] = Math.fround(Math.fround(r * red) + Math.fround(g * green)) + Math.fround(b * blue);
    brightness += luma[i];
    color += Math.max(r, g, b) - Math.min(r, g, b);
  }
  for (let y = 1; y < height - 1; y += 1) {
    for (let x = 1; x < width - 1; x += 1) {
      const i = y * width + x;
      const around = luma[i - width] + luma[i + width] + luma[i - 1] + luma[i + 1];
      sharpness += Math.abs(Math.fround(luma[i] - Math.fround(around) / 4));
    }
  }
  return {
    brightness: brightness / luma.length,
    color: color / luma.length,
    sharpness: sharpness / ((height - 2) * (width - 2)),
  };
}

/** Return the standard deviation of the members' probability of a class. */
function spreadOf(memberLogits, best, spec) {
  const count = spec.taxonomy.names.length;
  const shares = [];
  for (let at = 0; at < memberLogits.length; at += count) {
    shares.push(softmax([...memberLogits.slice(at, at + count)], spec.temperature)[best]);
  }
  const mean = shares.reduce((sum, value) => sum + value, 0) / shares.length;
  const squares = shares.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / shares.length);
}

function percent(value, digits = 1) {
  return `${fixed(100 * value, digits)}%`;
}

/** Round as Python does: of two equally near numbers to the one with an even last digit. */
function fixed(value, digits) {
  const all = value.toFixed(EXACT);
  const cut = all.length - EXACT + digits;
  const kept = all.slice(0, digits ? cut : cut - 1); // without a point at the end
  return tied(kept, all.slice(cut)) ? kept : value.toFixed(digits);
}

/** Write a number with three digits as Python's format `.3g` does. */
function general(value) {
  const [all, power] = value.toExponential(EXACT).split("e");
  const cut = all.indexOf(".") + 3;
  const kept = all.slice(0, cut);
  const short = tied(kept, all.slice(cut)) ? `${kept}e${power}` : value.toExponential(2);
  const [digits, exponent] = short.split("e").map(Number);
  if (exponent >= -4 && exponent < 3) return String(Number(short));
  const sign = exponent < 0 ? "-" : "+";
  return `${digits}e${sign}${String(Math.abs(exponent)).padStart(2, "0")}`;
}

function tied(kept, rest) {
  return /^50*$/.test(rest) && Number(kept.at(-1)) % 2 === 0;
}

/** Write a number as Python does, a whole one with its point. */
function decimal(value) {
  return Number.isInteger(value) ? `${value}.0` : String(value);
}
