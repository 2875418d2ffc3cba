// Drawings that were not handed in yet, kept in this browser (IndexedDB) so that a reload or a crash loses nothing.

const [NAME, STORE] = ["rescueseg-drawings", "drawings"];
const DAYS = 14;

let database = null; // opened once: a stroke's copy is on its way before anything can reload the page

function opened() {
  database ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return database;
}

async function run(mode, work) {
  const transaction = (await opened()).transaction(STORE, mode);
  return new Promise((resolve, reject) => {
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = () => reject(transaction.error);
  });
}

// A key is [campaign, annotator, ticket, digest of what was drawn over]: a lease may run out, and the next one of the
// ticket finds the drawing; over another mask it is not put back.
export const keep = {
  save: (key, labels, seconds) => run("readwrite", (store) => store.put({ labels, seconds, at: Date.now() }, key)),
  load: (key) => run("readonly", (store) => store.get(key)),
  // The keys of one's drawings in a campaign, the latest first.
  async keys(campaign, annotator) {
    const found = [];
    await run("readonly", (store) => {
      store.openCursor(IDBKeyRange.bound([campaign, annotator], [campaign, annotator, []])).onsuccess = ({ target }) => {
        if (!target.result) return;
        found.push([target.result.value.at, target.result.key]);
        target.result.continue();
      };
    });
    return found.sort(([a], [b]) => b - a).map(([, key]) => key);
  },
  drop: (key) => run("readwrite", (store) => store.delete(key)),
  async tidy() {
    const oldest = Date.now() - DAYS * 86400e3;
    await run("readwrite", (store) => {
      store.openCursor().onsuccess = ({ target: { result: cursor } }) => {
        if (!cursor) return;
        if (cursor.value.at < oldest) cursor.delete();
        cursor.continue();
      };
    });
  },
};
