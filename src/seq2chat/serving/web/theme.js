// This runs before anything is drawn, so that a page that was switched to dark does not flash.
document.documentElement.dataset.theme = localStorage.getItem("seq2chat.theme") ?? "";
