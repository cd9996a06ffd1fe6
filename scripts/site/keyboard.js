// What scrolls can be reached by keyboard, and a caption says how deep it stands.
addEventListener('DOMContentLoaded', () => {
  for (const e of document.querySelectorAll('pre, .math-wrapper, .table-wrapper')) e.tabIndex = 0
  for (const e of document.querySelectorAll('.caption[role=heading]')) e.ariaLevel = '2'
})
