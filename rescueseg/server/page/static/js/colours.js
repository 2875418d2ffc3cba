// Colours of labels: Okabe and Ito's palette, told apart by colour-blind people too (https://jfly.uni-koeln.de/color/);
// then hues by the golden angle.

import { IGNORE } from "./drawing.js";

const FIRST = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2"];
const NOT_ANNOTATED = "#8a5cff";

export function colour(value) {
  if (value === IGNORE) return NOT_ANNOTATED;
  if (value <= FIRST.length) return FIRST[value - 1];
  return hsl((value * 137.508) % 360, 0.75, 0.6);
}

function hsl(hue, saturation, lightness) {
  const part = (n) => {
    const k = (n + hue / 30) % 12;
    const level = lightness - saturation * Math.min(lightness, 1 - lightness) * Math.max(-1, Math.min(k - 3, 9 - k, 1));
    return Math.round(255 * level).toString(16).padStart(2, "0");
  };
  return `#${part(0)}${part(8)}${part(4)}`;
}

// NiiVue's table of the drawing's colours: 256 times red, green, blue, alpha.
export function drawTable() {
  const lut = new Uint8ClampedArray(1024);
  for (let value = 1; value < 256; value++) {
    const rgb = [1, 3, 5].map((at) => parseInt(colour(value).slice(at, at + 2), 16));
    lut.set([...rgb, 255], 4 * value);
  }
  return { lut, labels: Array.from({ length: 256 }, (_, value) => String(value)) };
}
