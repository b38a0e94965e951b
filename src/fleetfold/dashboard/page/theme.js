// Before anything is painted: the theme that was chosen here, else the system's.
"use strict";
(() => {
  let chosen = "";
  try { chosen = localStorage.getItem("fleetfold-theme") || ""; } catch { /* a browser that keeps nothing */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
