// What a person handed in today from this browser: patches, time at work, voxels corrected.

import { element } from "./dialogs.js";

const minutes = (seconds) => `${Math.round(seconds / 60)} min`;

export class Effort {
  constructor(place, { campaign, annotator }) {
    this.place = place;
    this.key = `rescueseg-effort ${campaign} ${annotator}`;
    this.#show(this.#today());
  }

  add({ seconds, voxels_corrected: corrected }) {
    const before = this.#today();
    const now = {
      day: before.day, patches: before.patches + 1, seconds: before.seconds + seconds, corrected: before.corrected + corrected,
    };
    localStorage.setItem(this.key, JSON.stringify(now));
    this.#show(now);
  }

  #today() {
    const day = new Date().toDateString();
    const entry = JSON.parse(localStorage.getItem(this.key) ?? "{}");
    return entry.day === day ? entry : { day, patches: 0, seconds: 0, corrected: 0 };
  }

  #show({ patches, seconds, corrected }) {
    const each = patches ? `, ${minutes(seconds / patches)} each` : "";
    const text = `${patches} handed in · ${minutes(seconds)} at work${each} · ${corrected.toLocaleString("en")} voxels corrected`;
    this.place.replaceChildren(element("h2", { textContent: "You today, in this browser" }), text);
  }
}
