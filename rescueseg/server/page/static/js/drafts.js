// Drafts: drawings that are not handed in yet, kept in this browser (IndexedDB) so that a reload or crash loses nothing.

const [NAME, STORE] = ["rescueseg-drawings", "drawings"];
const DAYS = 14;

let connection = null; // opened once: saving a stroke starts before anything can reload the page

function connect() {
  connection ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return connection;
}

async function run(mode, action) {
  const transaction = (await connect()).transaction(STORE, mode);
  return new Promise((resolve, reject) => {
    const request = action(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = () => reject(transaction.error);
  });
}

// A key is [campaign, annotator, ticket, digest of the mask it was drawn over]: a later lease of the ticket finds the
// drawing, unless it starts from another mask.
export const drafts = {
  save: (key, labels, seconds) => run("readwrite", (store) => store.put({ labels, seconds, at: Date.now() }, key)),
  load: (key) => run("readonly", (store) => store.get(key)),
  // The keys of a person's drafts in a campaign, the latest first.
  async keys(campaign, annotator) {
    const entries = [];
    await run("readonly", (store) => {
      store.openCursor(IDBKeyRange.bound([campaign, annotator], [campaign, annotator, []])).onsuccess = ({ target }) => {
        if (!target.result) return;
        entries.push([target.result.value.at, target.result.key]);
        target.result.continue();
      };
    });
    return entries.sort(([a], [b]) => b - a).map(([, key]) => key);
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
