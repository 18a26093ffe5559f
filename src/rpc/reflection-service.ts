/** The standard gRPC server reflection (grpc.reflection.v1), answered from the descriptors that the server runs on. */
import {
  createRegistry,
  type DescExtension,
  type DescFile,
  type DescService,
  type Registry,
  toBinary,
} from '@bufbuild/protobuf';
import { FileDescriptorProtoSchema } from '@bufbuild/protobuf/wkt';
import { status } from '@grpc/grpc-js';
import { ServerReflection, type ServerReflectionRequest } from './gen/grpc/reflection/v1/reflection_pb.ts';
import { implement, type RegisteredService } from './grpc-service.ts';

/** Answers for the given services, itself included, and everything their files import. */
export function createReflection(services: readonly DescService[]): RegisteredService {
  const all = [...services, ServerReflection];
  const files = withImports(all.map((service) => service.file));
  const types = createRegistry(...files);
  return implement(ServerReflection, {
    async *serverReflectionInfo(requests) {
      for await (const request of requests) yield { originalRequest: request, messageResponse: answer(request) };
    },
  });

  function answer({ messageRequest: request }: ServerReflectionRequest) {
    switch (request.case) {
      case 'listServices':
        return {
          case: 'listServicesResponse' as const,
          value: {
            service: all.map(({ typeName }) => ({ name: typeName })).sort((a, b) => (a.name < b.name ? -1 : 1)),
          },
        };
      case 'fileByFilename':
        return fileAnswer(
          files.find(({ proto }) => proto.name === request.value),
          request.value,
        );
      case 'fileContainingSymbol':
        return fileAnswer(fileOfSymbol(types, request.value), request.value);
      case 'fileContainingExtension': {
        const { containingType, extensionNumber } = request.value;
        const extension = extensionsOf(types, containingType).find(({ number }) => number === extensionNumber);
        return fileAnswer(extension?.file, `extension ${extensionNumber} of ${containingType}`);
      }
      case 'allExtensionNumbersOfType':
        if (types.getMessage(request.value) === undefined) return errorAnswer(status.NOT_FOUND, request.value);
        return {
          case: 'allExtensionNumbersResponse' as const,
          value: {
            baseTypeName: request.value,
            extensionNumber: extensionsOf(types, request.value).map(({ number }) => number),
          },
        };
      case undefined:
        return errorAnswer(status.INVALID_ARGUMENT, 'a request without a question');
    }
  }
}

function fileAnswer(file: DescFile | undefined, wanted: string) {
  if (file === undefined) return errorAnswer(status.NOT_FOUND, wanted);
  return {
    case: 'fileDescriptorResponse' as const,
    value: {
      fileDescriptorProto: withImports([file]).map(({ proto }) => toBinary(FileDescriptorProtoSchema, proto)),
    },
  };
}

function errorAnswer(errorCode: number, wanted: string) {
  return {
    case: 'errorResponse' as const,
    value: { errorCode, errorMessage: `not known here: ${wanted.slice(0, 200)}` },
  };
}

/** The files and all they import, each once, the given ones first. */
function withImports(files: readonly DescFile[]): DescFile[] {
  const found = new Set(files);
  // A Set's iterator also visits what is added on the way.
  for (const file of found) for (const imported of file.dependencies) found.add(imported);
  return [...found];
}

/** A service, message, enum or extension by its full name, or a method, field or value by its parent's. */
function fileOfSymbol(types: Registry, symbol: string): DescFile | undefined {
  const parent = symbol.slice(0, Math.max(0, symbol.lastIndexOf('.')));
  return (types.get(symbol) ?? types.get(parent))?.file;
}

function extensionsOf(types: Registry, typeName: string): DescExtension[] {
  return [...types]
    .filter((type) => type.kind === 'extension')
    .filter(({ extendee }) => extendee.typeName === typeName);
}
