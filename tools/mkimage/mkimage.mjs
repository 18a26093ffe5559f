#!/usr/bin/env node
import { bootstrap } from '../bootstrap.mjs';

await bootstrap('tools/mkimage/main.ts', process.argv.slice(2));
