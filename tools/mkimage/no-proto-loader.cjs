// grpc-js loads proto files at run time for channelz and ORCA only. The image has neither those services nor protobufjs.
'use strict';
throw new Error('cannot load proto files at run time: the image holds generated code only');
