// koffi's own loader searches for its addon beside the module and asks the ELF header of the executable which one fits.
// In the image there is one, at one path.
'use strict';
const addon = { exports: {} };
process.dlopen(addon, '/usr/lib/ashlar/koffi.node');
module.exports = addon.exports;
